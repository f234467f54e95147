"""Many runs: ablation, comparison, submission to a cluster."""
