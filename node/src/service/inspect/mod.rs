//! Looking into a DAG: ls, stat, and paths inside. SKELETON.
