//! Harnesses. SKELETON.
