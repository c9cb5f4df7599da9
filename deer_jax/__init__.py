"""DEER: reinforcement learning with token-level credit for clinical accuracy of radiology reports."""
