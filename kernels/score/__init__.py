"""Score-function gradients over S samples, with control variates."""
