"""What is shown of an ablation: tables as text, figures, and a page, from its folder alone."""
