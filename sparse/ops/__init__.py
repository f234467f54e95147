"""The operations that backends share: depthwise convolution, GRN, linear layers."""
