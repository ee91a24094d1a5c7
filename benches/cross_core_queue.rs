//! How long does a message take from one core to another and back? Two threads that spin, on CPUs 0 and 1.
#![allow(clippy::disallowed_methods)] // threads of the harness, not of the product

use divan::Bencher;
use dynarc::limits::MESH_QUEUE_MESSAGES;
use glommio::channels::spsc_queue::{self, Consumer, Producer};

fn main() {
    divan::main();
}

/// Ends the other thread.
const STOP: u64 = u64::MAX;

fn pin(cpu: usize) {
    // Without the CPU the figure is that of two threads that share one; it is printed all the same.
    let _ = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}
fn push(queue: &Producer<u64>, number: u64) {
    while queue.try_push(number).is_some() {
        std::hint::spin_loop();
    }
}
fn pop(queue: &Consumer<u64>) -> u64 {
    loop {
        match queue.try_pop() {
            Some(number) => return number,
            None => std::hint::spin_loop(),
        }
    }
}

/// `batch` messages there, as many back.
#[divan::bench(args = [1, 16, 256], sample_count = 50, max_time = 2)]
fn round_trip(bencher: Bencher, batch: u64) {
    let (to, asked) = spsc_queue::make(MESH_QUEUE_MESSAGES);
    let (answers, from) = spsc_queue::make(MESH_QUEUE_MESSAGES);
    let echo = std::thread::spawn(move || {
        pin(1);
        loop {
            match pop(&asked) {
                STOP => return,
                number => push(&answers, number),
            }
        }
    });
    pin(0);
    bencher.counter(divan::counter::ItemsCount::new(batch)).bench_local(|| {
        (0..batch).for_each(|number| push(&to, number));
        (0..batch).map(|_| pop(&from)).sum::<u64>()
    });
    push(&to, STOP);
    echo.join().expect("the echo does not panic");
}
