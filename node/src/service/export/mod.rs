//! Writing a DAG out as files and trees. SKELETON.
