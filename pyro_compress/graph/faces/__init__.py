"""What a rule writes of an operation for a deployment: nodes of ONNX, loops of a C program."""
