"""Stage `finetune`: further fine-tuning with fixed centre-crop labels (paper section 4.3), in the pretraining loop."""

from uic_core.pretrain.__main__ import main

if __name__ == "__main__":
    main()
