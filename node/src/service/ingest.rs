//! Reading files and trees into chunks. SKELETON.
