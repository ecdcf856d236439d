//! Core bugs of the past, each as a scenario (CS).
