"""What a rule writes of an operation for a deployment: nodes of ONNX, steps of a C program."""
