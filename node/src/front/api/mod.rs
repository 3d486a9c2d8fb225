//! The local API between command line and daemon. SKELETON.
