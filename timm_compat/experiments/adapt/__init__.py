"""Unsupervised domain adaptation: a head learns on labelled source images and runs on unlabelled target images."""
