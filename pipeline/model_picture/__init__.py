"""A picture of the model: one HTML page whose sliders show what each choice does to shapes, parameters and FLOPs."""
