"""Unsupervised Image Classification (UIC): training, its peers, and every evaluation of the paper."""
