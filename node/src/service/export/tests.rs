//! Writing DAGs that a map holds into real directories.
