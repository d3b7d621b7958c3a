"""Networks: the frozen encoders, f, which proposes masks, and g, which selects among them."""
