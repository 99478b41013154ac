//! Folding: a thread puts what the journal holds into the tree, half a journal at a time, while
//! the committer goes on with the other half. Nobody waits for the tree but a committer that has
//! filled its half first. It ends when the committer does, after what it was given.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::store::commit::Monitor;
use crate::store::engine::Engine;
use crate::store::{Fault, OpenError, spawn};

/// The folding thread.
pub(in crate::store) struct Folder {
    /// The generation that begins when the sealed rows are in the tree.
    work: SyncSender<u64>,
    done: Receiver<Result<(), Fault>>,
    busy: bool,
    thread: JoinHandle<()>,
}

impl Folder {
    /// Starts it. What fails there ends all writing.
    pub(in crate::store) fn start(
        engine: Arc<Engine>,
        monitor: Arc<Monitor>,
    ) -> Result<Self, OpenError> {
        let (work, given) = sync_channel(1);
        let (tell, done) = sync_channel(1);
        let thread = spawn("store-folder", move || {
            for next in given {
                monitor.folding(true);
                let folded = engine.fold(next);
                monitor.folding(false);
                if let Err(Fault(reason)) = &folded {
                    monitor.fail(reason.clone());
                }
                if tell.send(folded).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            work,
            done,
            busy: false,
            thread,
        })
    }

    /// Has what is staged sealed and folded, as soon as what was sealed before is.
    pub(in crate::store) fn seal(&mut self, engine: &Engine, next: u64) -> Result<(), Fault> {
        let ended = || Fault("the folding thread has ended".to_owned());
        if self.busy {
            self.done.recv().map_err(|_| ended())??;
        }
        engine.seal();
        self.work.send(next).map_err(|_| ended())?;
        self.busy = true;
        Ok(())
    }

    /// Returns when what was sealed is folded and the thread has let go of the engine.
    pub(in crate::store) fn stop(self) {
        drop(self.work);
        drop(self.done);
        // It ends by itself; what failed there has been told.
        self.thread.join().ok();
    }
}
