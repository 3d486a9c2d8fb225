//! What an add has sent, and when each part of it was acknowledged last: on disk, so that an add of any size and any
//! duration knows what to renew in memory that grows by a few bytes a thousand chunks.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use p2p_protocol::manifest::{ENTRY_BYTES, Entry};
use tokio::time::Instant;

/// Chunks of a page: what one renewal asks a peer about. 40 KiB, which are held until the page is full or due.
const PAGE: usize = 1024;

/// Chunks that were sent one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    /// The first of them was acknowledged last then, or later.
    pub(super) since: Instant,
    /// Where they stand in the file, and how many there are.
    at: u64,
    count: usize,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Sent {
    directory: PathBuf,
    /// Once there is a page. It has no name: it goes with the process, however that ends. Held while one is written.
    file: tokio::sync::Mutex<Option<Arc<File>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is on no page yet, and when the first of it came.
    gathered: Vec<Entry>,
    since: Option<Instant>,
    /// Bytes of the file that belong to pages.
    end: u64,
    /// Oldest first.
    pages: VecDeque<Page>,
}

impl Sent {
    /// Nothing yet; pages go to `directory`, which is made when it is needed.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: tokio::sync::Mutex::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a chunk that is here, and was acknowledged at `since` or later.
    pub(super) async fn push(&self, entry: Entry, since: Instant) -> io::Result<()> {
        let full = {
            let mut state = self.state();
            state.since = Some(state.since.map_or(since, |first| first.min(since)));
            state.gathered.push(entry);
            state.gathered.len() >= PAGE
        };
        if full { self.seal().await } else { Ok(()) }
    }

    /// Makes a page of what was gathered.
    async fn seal(&self) -> io::Result<()> {
        let mut file = self.file.lock().await;
        let (gathered, since, at) = {
            let mut state = self.state();
            // Whoever had the file before took it along.
            let Some(since) = state.since.take() else { return Ok(()) };
            (std::mem::take(&mut state.gathered), since, state.end)
        };
        let (count, known, directory) = (gathered.len(), file.clone(), self.directory.clone());
        let write = move || {
            let file = match known {
                Some(file) => file,
                None => {
                    std::fs::create_dir_all(&directory)?;
                    Arc::new(tempfile::tempfile_in(&directory)?)
                }
            };
            let bytes: Vec<u8> = gathered.iter().flat_map(Entry::to_bytes).collect();
            file.write_all_at(&bytes, at)?;
            Ok::<_, io::Error>(file)
        };
        *file = Some(blocking(write).await?);
        let mut state = self.state();
        state.end += (count * ENTRY_BYTES) as u64;
        state.pages.push_back(Page { since, at, count });
        Ok(())
    }

    /// When the oldest of it was acknowledged last; `None`: nothing was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let state = self.state();
        state.pages.front().map(|page| page.since).into_iter().chain(state.since).min()
    }

    /// Takes out the oldest page of what was acknowledged `age` ago or earlier, and its chunks.
    pub(super) async fn take_due(&self, age: Duration) -> io::Result<Option<(Page, Vec<Entry>)>> {
        let due = |since: Instant| since.elapsed() >= age;
        let gathered = self.state().since.is_some_and(due);
        if gathered {
            self.seal().await?;
        }
        let taken = {
            let mut state = self.state();
            let first = state.pages.front().is_some_and(|page| due(page.since));
            first.then(|| state.pages.pop_front()).flatten()
        };
        let Some(page) = taken else { return Ok(None) };
        // There is a page only once there is the file.
        let file = self.file.lock().await.clone().ok_or(io::ErrorKind::NotFound)?;
        let read = move || {
            let mut bytes = vec![0; page.count * ENTRY_BYTES];
            file.read_exact_at(&mut bytes, page.at)?;
            let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
            let entries: Option<Vec<Entry>> = entries.iter().map(Entry::from_bytes).collect();
            entries.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        Ok(Some((page, blocking(read).await?)))
    }

    /// Puts a page back whose renewal began then.
    pub(super) fn renewed(&self, page: Page, began: Instant) {
        self.state().pages.push_back(Page { since: began, ..page });
    }
}

/// A thread is refused only while the runtime shuts down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use p2p_protocol::{Cid, Codec};

    use super::*;

    fn entry(number: u32) -> Entry {
        Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 4 }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_given_page_by_page_oldest_first_and_again_when_it_is_old_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (sent, minute) = (Sent::new(&directory.path().join("tmp")), Duration::from_secs(60));
        assert_eq!((sent.oldest(), sent.take_due(minute).await.expect("it reads")), (None, None));
        for number in 0..2500 {
            sent.push(entry(number), Instant::now()).await.expect("it writes");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(sent.take_due(minute).await.expect("it reads"), None, "nothing is so old");
        tokio::time::advance(minute).await;
        let mut seen = Vec::new();
        while let Some((page, entries)) = sent.take_due(minute).await.expect("it reads") {
            seen.extend(entries);
            sent.renewed(page, Instant::now());
        }
        assert_eq!(seen, (0..2500).map(entry).collect::<Vec<_>>());
        // A few more, after what was renewed.
        tokio::time::advance(minute / 2).await;
        sent.push(entry(9999), Instant::now()).await.expect("it writes");
        tokio::time::advance(minute / 2).await;
        let (mut pages, mut count) = (0, 0);
        while let Some((_, entries)) = sent.take_due(minute).await.expect("it reads") {
            (pages, count) = (pages + 1, count + entries.len());
        }
        assert_eq!((pages, count), (3, 2500), "the newest is half a minute old");
        assert!(sent.oldest().is_some_and(|oldest| oldest.elapsed() == minute / 2));
    }
}
