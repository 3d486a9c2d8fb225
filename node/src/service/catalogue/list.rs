//! All that stands, a page after the other from the log: a catalogue may be larger than memory has room for.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use p2p_protocol::{
    catalogue::{Publication, SignedPublication},
    reconcile::Fingerprint,
};

use super::{
    Catalogue,
    ledger::{Ledger, PAGE},
    records::{self, Value},
};
use crate::store::StoreError;

/// Entries that are shown by name: as many as are read and sorted before anybody waits, some 3 MiB.
const SORTED: usize = 4096;

/// A publication that stands, and whether it is the current version.
type Standing = (Publication, bool);

impl Catalogue {
    /// How many publications stand here, removals too, and their fingerprint: equal where two catalogues are.
    pub fn standing(&self) -> (usize, Fingerprint) {
        // Each looks under the lock: it must be let go in between.
        let count = self.ledger.map().len();
        (count, self.fingerprint())
    }

    /// All that are current, removals left out: by name (without one, label), root and publisher where no more than 4,096
    /// entries stand, else in the order of their keys, which are hashes. What comes or goes meanwhile may be in it or not.
    pub fn list(&self) -> BoxStream<'static, Result<Publication, StoreError>> {
        let all = pages(self.ledger.clone()).map(|page| {
            page.map(|page| {
                let current = page.into_iter().filter(|(entry, current)| *current && !entry.removed);
                current.map(|(entry, _)| entry).collect::<Vec<_>>()
            })
        });
        if self.ledger.map().len() > SORTED {
            return all.flat_map(|page| stream::iter(lines(page))).boxed();
        }
        let sorted = async move {
            let pages: Vec<_> = all.collect().await;
            let entries: Result<Vec<_>, _> = pages.into_iter().collect();
            let mut entries = entries.map(|pages| pages.concat());
            if let Ok(entries) = &mut entries {
                entries.sort_by(|a, b| order(a).cmp(&order(b)));
            }
            stream::iter(lines(entries))
        };
        stream::once(sorted).flatten().boxed()
    }

    /// All that are live, current and kept, in pages of at most 512, in no order. One that becomes so after
    /// [`liveness`](Self::liveness) was called may be told there too.
    pub fn live_pages(&self) -> BoxStream<'static, Result<Vec<Publication>, StoreError>> {
        let live =
            |page: Vec<Standing>| page.into_iter().map(|(entry, _)| entry).filter(|entry| !entry.removed).collect();
        pages(self.ledger.clone()).map(move |page| page.map(live)).boxed()
    }
}

fn lines<T>(page: Result<Vec<T>, StoreError>) -> Vec<Result<T, StoreError>> {
    match page {
        Ok(page) => page.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}

fn order(entry: &Publication) -> (&str, [u8; 36], Vec<u8>) {
    (entry.name.as_deref().unwrap_or(&entry.label), entry.root.to_bytes(), entry.publisher.to_bytes())
}

/// What stood when this was called, as far as it still does when its page is read; the last item may be a failure.
fn pages(ledger: std::sync::Arc<Ledger>) -> impl futures::Stream<Item = Result<Vec<Standing>, StoreError>> + Send {
    enum From {
        Start,
        After(Bytes),
        End,
    }
    stream::unfold((ledger, From::Start), |(ledger, from)| async move {
        let after = match from {
            // What was merged by now is in the log after this. Where it cannot be written, what is there is shown.
            From::Start => ledger.flushed().await.map(|()| None).unwrap_or_default(),
            From::After(after) => Some(after),
            From::End => return None,
        };
        tokio::task::yield_now().await;
        match page(&ledger, after.as_deref()) {
            Ok((page, Some(next))) => Some((Ok(page), (ledger, From::After(next)))),
            Ok((_, None)) => None,
            Err(error) => Some((Err(error), (ledger, From::End))),
        }
    })
}

/// A page of the log, and where the next one begins; `None`: this is behind the last.
fn page(ledger: &Ledger, after: Option<&[u8]>) -> Result<(Vec<Standing>, Option<Bytes>), StoreError> {
    let page = ledger.store().records(records::PREFIX, after, PAGE)?;
    let next = page.last().map(|(key, _)| key.clone());
    let values = page.into_iter().filter_map(|(_, value)| Value::decode(&value));
    let values = values.filter(|value| value.network == ledger.network_tag());
    let read = values.filter_map(|value| SignedPublication::read_back(&value.signed_bytes).ok());
    let read: Vec<_> = read.map(|signed| (signed.id(), signed.into_parts().0)).collect();
    let map = ledger.map();
    let standing = read.into_iter().filter(|(id, _)| map.ids().contains(id)).map(|(_, entry)| {
        let current = map.current(&entry.publisher, &entry.key()) == Some(entry.version);
        (entry, current)
    });
    Ok((standing.collect(), next))
}
