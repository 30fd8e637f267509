"""The parts of the study: what is trained, what is measured, and how it is shown."""
