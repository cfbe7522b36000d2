"""What scripts/fuzz_files.py is made of: valid inputs, changes of them, what they are taken through, limits."""
