"""The sparsity certificate: claims about a model, measured."""
