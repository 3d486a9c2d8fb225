//! Listing and following paths in DAGs that a map holds.
