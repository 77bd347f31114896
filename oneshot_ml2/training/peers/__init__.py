"""Other published predictors, trained on our corpora and held against the network on the same tasks."""
