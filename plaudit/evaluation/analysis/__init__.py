"""What scores depend on: baselines, feature bias, slices, mistakes, perturbation tests."""
