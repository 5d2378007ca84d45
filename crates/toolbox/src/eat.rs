//! Consumers of memory, processor time and disk, to see limits bind.

use crate::{Failure, Outcome, duration, size};
use std::hint::black_box;
use std::time::{Duration, Instant};

pub(crate) fn main(args: &[String]) -> Outcome {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let forever = Duration::from_secs(u64::from(u32::MAX));
    match words[..] {
        ["memory", amount] => memory(size(amount)?, forever),
        ["memory", amount, time] => memory(size(amount)?, duration(time)?),
        ["cpu"] => cpu(1, forever),
        ["cpu", cores] => cpu(number(cores)?, forever),
        ["cpu", cores, time] => cpu(number(cores)?, duration(time)?),
        ["file", path, amount] => crate::fs::files(&["fill".to_owned(), path.to_owned(), amount.to_owned()]),
        _ => Err(Failure::usage("eat memory SIZE [FOR] | cpu [CORES [FOR]] | file PATH SIZE")),
    }
}

fn number(text: &str) -> Result<u32, Failure> {
    text.parse().map_err(|_| Failure::new(format!("{text:?} is not a number")))
}

fn memory(bytes: u64, time: Duration) -> Outcome {
    const STEP: usize = 1 << 20;
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let step = left.min(STEP as u64) as usize;
        // Not zeros: the pages must really be there.
        held.push(vec![0x2e; step]);
        left -= step as u64;
    }
    println!("holding {bytes} bytes");
    std::thread::sleep(time);
    black_box(&held);
    Ok(0)
}

fn cpu(cores: u32, time: Duration) -> Outcome {
    let start = Instant::now();
    let spin = move || {
        let mut number = 1u64;
        while start.elapsed() < time {
            for _ in 0..10_000 {
                number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
    };
    let others: Vec<_> = (1..cores).map(|_| std::thread::spawn(spin)).collect();
    spin();
    for other in others {
        let _ = other.join();
    }
    Ok(0)
}
