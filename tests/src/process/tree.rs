//! Files and trees made from a seed, and trees compared byte for byte.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
};

use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Bytes that nothing compresses, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    keystream(seed).apply_keystream(&mut bytes);
    bytes
}

/// Writes such a file, in steps: memory does not grow with it.
///
/// # Panics
/// If the file cannot be written.
pub fn noise_file(path: &Path, seed: u64, length: u64) {
    let mut stream = keystream(seed);
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut left = length;
    while left > 0 {
        let mut piece = vec![0; left.min(1 << 20) as usize];
        stream.apply_keystream(&mut piece);
        file.write_all(&piece).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        left -= piece.len() as u64;
    }
}

fn keystream(seed: u64) -> ChaCha20 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha20::new(&key.into(), &[0; 12].into())
}

/// A tree of `files` files, about 40 KiB each, with all that a real one has: deep and empty directories, dotfiles, empty files,
/// files at and around the size of a chunk, links that lead somewhere, outside and nowhere, names in other scripts.
/// The larger files are [`noise`] of `seed + 1` (`exact`), `seed + 2` (`over`) and `seed + 3`: chunks of their own want
/// other seeds.
///
/// # Panics
/// If it cannot be written.
pub fn grow(root: &Path, seed: u64, files: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let write = |path: PathBuf, seed: u64, length: usize| {
        let parent = path.parent().expect("it is inside root");
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        fs::write(&path, noise(seed, length)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    fs::create_dir_all(root.join("empty/inside")).expect("a fresh directory takes another");
    write(root.join("nothing"), 0, 0);
    write(root.join(".hidden/.dotfile"), seed, 10);
    write(root.join("one byte"), seed, 1);
    write(root.join("exact"), seed + 1, 1 << 20);
    write(root.join("over"), seed + 2, (1 << 20) + 1);
    write(root.join("больше/日本語 ünïcode"), seed + 3, 3_500_000);
    for place in 0..files {
        let depth = random.random_range(0..4);
        let mut path = root.join("src");
        for _ in 0..depth {
            path.push(format!("d{}", random.random_range(0..6)));
        }
        path.push(format!("file-{place:04}.bin"));
        let length = random.random_range(0..80_000);
        write(path, seed ^ (place as u64 + 100), length);
    }
    symlink("exact", root.join("link")).expect("a fresh directory takes a link");
    symlink("../../outside", root.join("empty/away")).expect("a fresh directory takes a link");
    symlink("nowhere/at/all", root.join("dangling")).expect("a fresh directory takes a link");
}

/// What is at a path of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leaf {
    /// A directory.
    Directory,
    /// A file: its length and the BLAKE3 of its bytes.
    File(u64, [u8; 32]),
    /// A symbolic link: its target.
    Link(PathBuf),
}

/// All that is in a tree, `root` itself under the empty path.
///
/// # Panics
/// If something cannot be read, or is none of the three.
pub fn survey(root: &Path) -> BTreeMap<PathBuf, Leaf> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        let path = if inside.as_os_str().is_empty() { root.to_owned() } else { root.join(&inside) };
        let kind = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let leaf = if kind.is_symlink() {
            Leaf::Link(fs::read_link(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
                waiting.push(inside.join(entry.expect("a directory that opened lists").file_name()));
            }
            Leaf::Directory
        } else {
            assert!(kind.is_file(), "{} is neither file, directory nor link", path.display());
            Leaf::File(kind.len(), digest(&path))
        };
        found.insert(inside, leaf);
    }
    found
}

/// The BLAKE3 of a file.
fn digest(path: &Path) -> [u8; 32] {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return *hasher.finalize().as_bytes(),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) => panic!("{}: {error}", path.display()),
        };
    }
}

/// # Panics
/// If the trees (or files) differ in anything but modes and times, with what differs.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (a, b) = (survey(left), survey(right));
    let differing: Vec<_> =
        a.keys().chain(b.keys()).filter(|path| a.get(*path) != b.get(*path)).take(10).collect::<Vec<_>>();
    assert!(differing.is_empty(), "{} and {} differ at {differing:?}", left.display(), right.display());
}

/// Modes and modification times of all that is in a tree, links left out.
pub fn modes(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64)> {
    let paths = survey(root).into_iter().filter(|(_, leaf)| !matches!(leaf, Leaf::Link(_)));
    paths
        .map(|(path, _)| {
            let kind = fs::symlink_metadata(root.join(&path)).expect("it was there");
            (path, (kind.mode() & 0o7777, kind.mtime(), kind.mtime_nsec()))
        })
        .collect()
}

/// Names in a directory that look like what an unfinished `get` leaves, or any other name than `expected`.
///
/// # Panics
/// If the directory cannot be read.
pub fn strangers(directory: &Path, expected: &[&str]) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("a directory that opened lists").file_name())
        .filter(|name| !expected.iter().any(|wanted| wanted.as_bytes() == name.as_bytes()))
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}
