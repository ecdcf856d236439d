//! The catalogue of cases on real cores; see `tests/catalogue`. Boot arguments: `long=1` for the long variants,
//! `only=` for the cases whose names begin so.
#![no_std]
#![no_main]

use ironthread::aio;
use ironthread_catalogue as catalogue;
use ironthread_target_tests::{argument, entry, pass, say, start, start_cores};

entry!(main);

fn main(tree: usize) -> ! {
    let info = start(tree);
    aio::main_context().attach(0);
    start_cores(&info, catalogue::secondary);
    catalogue::run(
        argument(&info, "long") == Some("1"),
        argument(&info, "only").unwrap_or(""),
        |case| say!("run {}", case.name),
        |case| say!("ok catalogue {}", case.name),
    );
    catalogue::shutdown();
    pass()
}
