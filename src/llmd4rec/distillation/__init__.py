"""What is trained in which order, who teaches whom, and how a student learns from its teachers."""
