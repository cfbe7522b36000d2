"""Programs for phones and boards: ExecuTorch and LiteRT."""
