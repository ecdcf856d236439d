//! The core we run on, under the same names for every target.
