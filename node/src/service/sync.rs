//! Catching up on the catalogue from a peer. SKELETON.
