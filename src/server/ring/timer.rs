//! Waiting for time to pass.

use super::{Operation, Ring, operation::Payload};
use io_uring::{opcode, squeue, types::Timespec};
use std::{future::Future, io, rc::Rc, time::Duration};

struct Pause(Box<Timespec>);

// Safety: the only address is that of the boxed timespec.
unsafe impl Payload for Pause {
    type Output = ();
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        opcode::Timeout::new(&*self.0).build()
    }
    fn finish(self, _: io::Result<u32>) {}
}

impl Ring {
    /// Ready after `duration` (monotonic), a little later rather than earlier.
    pub fn pause(self: &Rc<Ring>, duration: Duration) -> impl Future<Output = ()> + Unpin + use<> {
        Operation::start(self, Pause(Box::new(Timespec::from(duration))))
    }
}
