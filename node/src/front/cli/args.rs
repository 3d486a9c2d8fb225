//! The grammar of the command line. Help texts are for people who have never seen the program.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{
    add::Add,
    cat::Cat,
    completions::Completions,
    connect::Connect,
    daemon::Daemon,
    drain::Drain,
    get::Get,
    history::History,
    ls::Ls,
    pin::{Pin, Unpin},
    rm::{Restore, Rm},
    stat::Stat,
    verify::Verify,
    watch::Watch,
};

/// What stands at the end of every `--help`.
const AFTER: &str = "\
Exit codes:
  0  done, all of it
  1  failed, for any cause that has no code of its own
  2  usage: a bad option, CID, multiaddr or name
  3  no daemon answers on this data directory
  4  not found: no reachable peer has it, or there is no such path in it
  5  kept, but short of what was asked: peers that should hold a copy did not take it
  6  refused by policy: no space, quota, not permitted";

/// What stands at the end of the program's own `--help`.
const EXAMPLES: &str = "\
A REF is a CID, CID/path/inside, a published name, or PEER/NAME where two publishers use one name; \
NAME@VERSION is an earlier version, if it is kept.
A SIZE is a whole number of bytes, or of KiB, MiB, GiB or TiB (10GiB).
Results go to standard output and nothing else does; progress, hints and logs go to standard error.

Examples:
  p2p-node daemon                     run a node; nodes on one local network find each other
  p2p-node add photos/                keep a directory on three peers, print its CID
  p2p-node ls                         what the network holds
  p2p-node get CID -o photos          fetch it, on any node
  p2p-node stat CID                   see who holds the copies

A network is open to all who can reach it: do not put secrets into it.

Exit codes:
  0  done, all of it
  1  failed, for any cause that has no code of its own
  2  usage: a bad option, CID, multiaddr or name
  3  no daemon answers on this data directory
  4  not found: no reachable peer has it, or there is no such path in it
  5  kept, but short of what was asked: peers that should hold a copy did not take it
  6  refused by policy: no space, quota, not permitted";

/// A peer-to-peer store: equal peers keep what any of them is given
///
/// Add a file or a directory on one machine, and its chunks are kept on the k peers closest to each: any machine of the
/// network gives it back, also when the one that added it is gone.
#[derive(Parser, Debug)]
#[command(
    name = "p2p-node",
    bin_name = "p2p-node",
    version,
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Options that every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options before or after the verb.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// The node's state [env: P2P_NODE_DATA_DIR] [default: the platform's data directory + p2p-node]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options", value_hint = clap::ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Results as JSON on standard output: one object, or one object a line; failures too, as {"error":{"kind","message"}}
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// More log on standard error; twice for still more (RUST_LOG overrides it)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet", help_heading = "Global options")]
    pub verbose: u8,
    /// No progress, and only errors in the log
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub quiet: u8,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node in the foreground until SIGINT or SIGTERM
    #[command(after_help = AFTER, after_long_help = DAEMON)]
    Daemon(Box<Daemon>),
    /// Add files and directories: chunk, store, copy to the closest peers, announce
    #[command(after_help = AFTER, after_long_help = ADD)]
    Add(Add),
    /// Fetch a file or a whole directory, verify it and write it
    #[command(after_help = AFTER, after_long_help = GET)]
    Get(Get),
    /// Write a file's bytes to standard output
    #[command(after_help = AFTER, after_long_help = CAT)]
    Cat(Cat),
    /// List what the network holds, what is pinned here or, with a REF, a directory's entries
    #[command(after_help = AFTER, after_long_help = LS)]
    Ls(Ls),
    /// Show the size of something, its chunks, and where their copies are now
    #[command(after_help = AFTER, after_long_help = STAT)]
    Stat(Stat),
    /// Withdraw what this node published
    #[command(after_help = AFTER, after_long_help = RM)]
    Rm(Rm),
    /// Undo a removal, or bring an earlier version of a name back
    #[command(after_help = AFTER, after_long_help = RESTORE)]
    Restore(Restore),
    /// List the versions of a name that are kept
    #[command(after_help = AFTER, after_long_help = HISTORY)]
    History(History),
    /// Keep a whole copy on this node too, for when it is offline
    #[command(after_help = AFTER, after_long_help = PIN)]
    Pin(Pin),
    /// Keep no whole copy on this node any more
    #[command(after_help = AFTER, after_long_help = UNPIN)]
    Unpin(Unpin),
    /// Free now what nothing live lists and whose grace is over
    #[command(after_help = AFTER, after_long_help = GC)]
    Gc(NoArguments),
    /// Hand this node's share to the others before it is switched off for good
    #[command(after_help = AFTER, after_long_help = DRAIN)]
    Drain(Drain),
    /// Print updates of the catalogue as they happen, until stopped
    #[command(after_help = AFTER, after_long_help = WATCH)]
    Watch(Watch),
    /// List the connected peers: id, address, latency, agent, how found
    #[command(after_help = AFTER)]
    Peers(NoArguments),
    /// Dial a peer and print its peer id
    #[command(after_help = AFTER, after_long_help = CONNECT)]
    Connect(Connect),
    /// Show the node at a glance: peers, chunks, space, replication health
    #[command(after_help = AFTER)]
    Status(NoArguments),
    /// Read every chunk of this node again and fetch what is damaged, or check all of a REF
    #[command(after_help = AFTER, after_long_help = VERIFY)]
    Verify(Verify),
    /// Print a completion script for a shell
    #[command(after_help = AFTER, after_long_help = COMPLETIONS)]
    Completions(Completions),
}

/// A verb without arguments of its own.
#[derive(Args, Clone, Copy, Debug)]
pub struct NoArguments {}

const VERIFY: &str = "\
Reads and hashes every chunk of this node, as fast as the disk goes. What is damaged is set aside and \
fetched again from whoever has it, and so is what should be here and is missing: this waits for it as \
long as something comes. Ctrl-C ends it; what was set aside is fetched again all the same.
The daemon does the same by itself, slowly, within --scrub-period.

With a REF it follows all links of that, compares what it finds with what its publications list, asks \
the peers that should have each chunk, and reads the copies that are here. Missing is then what nobody \
who answers has; copies of this node that are damaged are waited for. Nothing else is changed.

Examples:
  p2p-node verify
  p2p-node verify photos
  p2p-node verify CID --json

Exit codes: 0 every chunk is here and intact, or somewhere; 1 something is still damaged or missing, or \
a publication lists other chunks, and standard error says what to do; 2 usage; 3 no daemon; 4 there is \
no such REF, or nobody has its root.";

const DAEMON: &str = "\
When it serves, it prints one line on standard output:
  ready peer=PEER listen=MULTIADDR[,MULTIADDR...]

Each option has an environment variable, which is P2P_NODE_ and its name: P2P_NODE_LISTEN and \
P2P_NODE_BOOTSTRAP (several addresses with commas between them), P2P_NODE_NO_MDNS, P2P_NODE_REPLICAS, \
P2P_NODE_CAPACITY, P2P_NODE_REPAIR_DELAY, P2P_NODE_REPAIR_RATE, P2P_NODE_AUDIT_INTERVAL, \
P2P_NODE_GC_GRACE, P2P_NODE_SCRUB_PERIOD, P2P_NODE_LABEL, P2P_NODE_CATALOGUE_ENTRIES, P2P_NODE_NETWORK \
and P2P_NODE_CONFIG; and, but for --config, a key in the settings file, which is the option without its dashes:

  listen = [\"/ip4/0.0.0.0/tcp/4242\"]
  bootstrap = [\"/dns/nas.example.org/tcp/4242\"]
  no-mdns = false
  replicas = 3
  capacity = \"200GiB\"
  gc-grace = \"2d\"
  network = \"home\"
  label = \"nas\"

A flag beats an environment variable, which beats the file.

Examples:
  p2p-node daemon
  p2p-node daemon --capacity 200GiB --network home
  p2p-node daemon --listen /ip4/127.0.0.1/tcp/0 --bootstrap /ip4/127.0.0.1/tcp/4242

Exit codes: 0 it was stopped by a signal; 1 it could not start (another daemon runs here, a port is \
taken); 2 a setting is wrong.";

const ADD: &str = "\
Prints the root CID, a line for each PATH in their order, and returns only when what it reports is \
true and on disk. Where the network has fewer peers than copies were asked for, it keeps the file and \
says so on standard error; the missing copies are made by themselves as peers join.
Directories are added whole: dotfiles, symbolic links as links, empty directories.
A PATH that fails does not stop the others; the exit code is that of the first failure.

Examples:
  p2p-node add report.pdf
  p2p-node add --name laptop --keep 30 --replicas 4 ~/documents
  tar c src | p2p-node add - --name src.tar
  p2p-node add --only-hash report.pdf        (needs no daemon)

Exit codes: 0 done; 1 failed; 2 usage; 3 no daemon; 5 kept, and its CID printed, but peers that \
should hold a copy did not take it; 6 no space, or no more room in the catalogue for what this node publishes.";

const GET: &str = "\
Prints the path that was written. Every chunk is verified. A get that was interrupted is resumed by \
repeating it. Nothing is kept in this node's store, and nothing is overwritten without --force.

Examples:
  p2p-node get bafy...                       into the current directory, under its label or its CID
  p2p-node get bafy.../docs/a.txt -o a.txt
  p2p-node get laptop -o restored
  p2p-node get laptop@3 -o earlier           an earlier version, if it is kept
  p2p-node get laptop --fresh -o now         the newest version there is

Exit codes: 0 done; 1 failed (also: the target exists); 2 usage; 3 no daemon; 4 not found; 6 there is no \
room for it, or it is a tree that is refused: too deep, or with too many entries.";

const PIN: &str = "\
Prints the CID, and returns when all of it is on this node's disk: from then on it can be read here with \
every other machine switched off. The other copies stay where they are, and this one counts as none of \
them. Nothing here makes it give way.

A NAME is pinned with its later versions: each is fetched as it is published, and the one before is kept \
no longer. The pin ends when the name is removed. Everything else (a CID, a path inside, NAME@VERSION) is \
kept as it is until p2p-node unpin, also when it is removed everywhere else.

Ctrl-C, or a daemon that is stopped, leaves it pinned: the node goes on with it by itself, at \
--repair-rate. Pinning again what is pinned waits for the rest of it.

Examples:
  p2p-node pin photos
  p2p-node pin laptop@3                      this version, whatever becomes of the name
  p2p-node ls --pinned

Exit codes: 0 all of it is here; 1 failed (also: it was unpinned or removed meanwhile); 2 usage; \
3 no daemon; 4 nothing of that name, or nobody has all of it; 6 there is no room for it here. Where part \
of it came before 4 or 6, standard error says that it is pinned: what is missing follows when it can.";

const UNPIN: &str = "\
Prints the CID. What was pinned by its name is unpinned by that, everything else by its CID. The copy is \
not removed at once: as long as it is published somewhere it is a cached one, which gives way when room is \
needed; else it is freed once --gc-grace is over.

Examples:
  p2p-node unpin photos
  p2p-node unpin bafy...

Exit codes: 0 done; 1 failed; 2 usage (also: several publishers use the name); 3 no daemon; 4 it is not \
pinned here.";

const GC: &str = "\
A node frees by itself what was removed, once --gc-grace is over and every peer that stores and was seen \
lately has heard of the removal; this does it now, and says what still waits. Nothing stops meanwhile.

Examples:
  p2p-node gc
  p2p-node gc --json

Exit codes: 0 done; 1 failed; 2 usage; 3 no daemon.";

const DRAIN: &str = "\
The others are told that this node leaves, fetch what it holds at their own pace (--repair-rate), and count \
on it no more; it returns when each chunk has its copies among them, as each of them says itself. The \
machine can then be switched off for good, and nothing moves any more. What nothing lists is not handed \
over. It can be stopped and begun again: the node remembers that it leaves, also after a restart, until \
--cancel. Until then it can be read from and added from, and takes no chunks.

Examples:
  p2p-node drain
  p2p-node drain --cancel                    stay after all

Exit codes: 0 done; 1 failed (also: there is nobody else); 2 usage; 3 no daemon.";

const CAT: &str = "\
Examples:
  p2p-node cat bafy... | less
  p2p-node cat bafy... --offset 1GiB --length 64KiB > part

Exit codes: 0 done; 1 failed (also: it is a directory); 2 usage; 3 no daemon; 4 not found; 6 the disk of the \
data directory is full.
A failure after the first byte is said too.";

const LS: &str = "\
Examples:
  p2p-node ls                   what the network holds:
                                size, kind, CID, version, time, publisher, name
  p2p-node ls bafy.../photos    a directory's entries: size, kind, CID, name
  p2p-node ls --pinned          what is pinned on this node, in the same columns

Exit codes: 0 done; 1 failed; 2 usage; 3 no daemon; 4 not found; 6 it has too many entries to be listed, or \
the disk of the data directory is full.";

const STAT: &str = "\
The network is asked now; nothing is remembered and nothing is stored. A holder keeps a chunk because \
it is one of the peers closest to it; a cached copy, shown in parentheses, is one that a peer happens \
to keep and that gives way when the room is needed.

Examples:
  p2p-node stat bafy...
  p2p-node stat bafy... --json --no-placement
  p2p-node stat --local                      every chunk in this node's own store

Exit codes: 0 done; 1 failed; 2 usage; 3 no daemon; 4 not found; 6 it is too deep, or has too many chunks to \
list each (--no-placement leaves them out).";

const RM: &str = "\
Prints the CID of each entry that was withdrawn, and returns when the peers that answer for the entry \
have that on disk. No node lists it any more; one that is away learns of it when it is back. A name \
goes with all its versions; of a CID it is every entry of this node that has it now. Where one REF \
cannot be removed, none is. Chunks that nothing else lists or pins are freed on every machine once \
--gc-grace is over; until then `restore` brings the entry back. What another node published, only that \
node can withdraw.

Examples:
  p2p-node rm laptop
  p2p-node rm bafy... bafy...

Exit codes: 0 done; 1 failed; 2 usage; 3 no daemon; 4 nothing of that name or CID; 5 withdrawn, but \
peers that answer for the entry did not confirm it; 6 another node published it.";

const RESTORE: &str = "\
Prints the CID. What was removed, or an earlier version, becomes the newest version of its name.

Examples:
  p2p-node restore laptop            undoes p2p-node rm laptop
  p2p-node restore laptop@3          version 3 again, as the newest

Exit codes: 0 done; 1 failed; 2 usage (also: it was not removed); 3 no daemon; 4 nothing of that name, \
version or CID, or no reachable peer has it; 5 restored, but peers that answer for the entry did not \
confirm it; 6 another node published it.";

const HISTORY: &str = "\
The newest first: version, size, kind, CID, time, publisher, name. How many are kept is said when a \
version is added (p2p-node add --keep).

Example:
  p2p-node history laptop

Exit codes: 0 done; 1 failed; 2 usage (also: one version, or several publishers use the name); 3 no daemon; \
4 nothing of that name.";

const WATCH: &str = "\
With --json each update has a position: with --since, a watcher that was away learns what came after \
the last that it saw. What was superseded meanwhile is left out.

Examples:
  p2p-node watch
  p2p-node watch --json --since 1234

Exit codes: 1 failed; 2 usage (also: no such position); 3 no daemon; it ends only when it is stopped.";

const CONNECT: &str = "\
Example:
  p2p-node connect /ip4/192.0.2.1/tcp/4242

Exit codes: 0 connected; 1 it cannot be reached, or is of another network; 2 not a multiaddr; 3 no daemon.";

const COMPLETIONS: &str = "\
Examples:
  p2p-node completions bash > ~/.local/share/bash-completion/completions/p2p-node
  p2p-node completions zsh  > \"${fpath[1]}/_p2p-node\"
  p2p-node completions fish > ~/.config/fish/completions/p2p-node.fish";

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
