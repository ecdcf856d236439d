//! Serves test disks over NBD from an ordinary process.
//!
//! ```text
//! ironthread-engine [--cores N] [--listen ADDR:PORT | --unix PATH] DISK …
//!   DISK: --ram NAME:SIZE | --null NAME:SIZE | --file NAME:PATH[:ro]
//!   --fault NAME:OPERATION:FROM-TO[:TIMES[:EVERY]]   EIO for requests that touch the range, for files
//!   --quiet                                          no log
//! ```
//! The first disk is the default export. One line `ready ADDRESS` on standard output when it serves.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use ironthread::block::node::{NodeId, null, ram};
use ironthread::block::{self, BlockError, Operation};
use ironthread::export::{self, nbd};
use ironthread_engine::cores;
use ironthread_engine::device::{Fault, TestDevice};
use ironthread_engine::sockets::{self, Listener};

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(std::io::stderr(), "{}", record.args());
    }

    fn flush(&self) {}
}

enum Disk {
    Ram(String, u64),
    Null(String, u64),
    File(String, &'static TestDevice, bool),
}

#[derive(Default)]
struct Options {
    cores: Option<usize>,
    listen: Option<String>,
    unix: Option<String>,
    disks: Vec<Disk>,
    quiet: bool,
}

fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

fn file(text: &str) -> Result<Disk, String> {
    let (name, path) = text.split_once(':').ok_or("--file NAME:PATH[:ro]")?;
    let (path, read_only) = match path.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let opened = OpenOptions::new().read(true).write(!read_only).open(path);
    let device = opened.and_then(|file| TestDevice::file(file, read_only, name));
    Ok(Disk::File(
        name.into(),
        device.map_err(|error| format!("{path}: {error}"))?,
        read_only,
    ))
}

fn fault(text: &str, disks: &[Disk]) -> Option<()> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let word = parts.next()?;
    let operation = Operation::ALL
        .into_iter()
        .find(|operation| operation.name() == word)?;
    let (from, to) = parts.next()?.split_once('-')?;
    let times = parts
        .next()
        .map_or(Some(u32::MAX), |times| times.parse().ok())?;
    let every = parts.next().map_or(Some(1), |every| every.parse().ok())?;
    let fault = Fault {
        operation,
        from: size(from)?,
        to: size(to)?,
        times,
        every,
        error: BlockError::Io,
    };
    disks.iter().find_map(|disk| match disk {
        Disk::File(known, device, _) if known == name => {
            device.plant(fault);
            Some(())
        }
        _ => None,
    })
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--quiet" {
            options.quiet = true;
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        let sized = |value: &str| {
            let (name, digits) = value.split_once(':')?;
            Some((name.to_string(), size(digits)?))
        };
        let wrong = || format!("{word} {value}: not understood");
        match word.as_str() {
            "--cores" => options.cores = Some(value.parse().map_err(|_| wrong())?),
            "--listen" => options.listen = Some(value),
            "--unix" => options.unix = Some(value),
            "--ram" => options.disks.push(
                sized(&value)
                    .map(|(n, s)| Disk::Ram(n, s))
                    .ok_or_else(wrong)?,
            ),
            "--null" => options.disks.push(
                sized(&value)
                    .map(|(n, s)| Disk::Null(n, s))
                    .ok_or_else(wrong)?,
            ),
            "--file" => options.disks.push(file(&value)?),
            "--fault" => fault(&value, &options.disks).ok_or_else(wrong)?,
            _ => return Err(format!("{word}: unknown")),
        }
    }
    if options.disks.is_empty() {
        return Err("no disk".into());
    }
    Ok(options)
}

fn node(disk: &Disk) -> Result<NodeId, BlockError> {
    match disk {
        Disk::Ram(name, size) => {
            let memory = Vec::leak(vec![0; *size as usize]);
            Ok(ram::create(name, memory, 512)?)
        }
        Disk::Null(name, size) => {
            let options = null::NullOptions {
                size: *size,
                block: 512,
                read_zeroes: true,
                latency_ns: 0,
            };
            Ok(null::create(name, options)?)
        }
        Disk::File(_, device, _) => block::add_disk(*device, 0).map(block::Disk::node),
    }
}

fn export_all(disks: &[Disk]) {
    for disk in disks {
        let (name, kind, writable) = match disk {
            Disk::Ram(name, _) => (name, "memory", true),
            Disk::Null(name, _) => (name, "nothing", true),
            Disk::File(name, _, read_only) => (name, "file", !read_only),
        };
        let node = node(disk).expect("a node");
        let description = format!("{kind} of the test engine");
        export::serve(node, name, &description, writable).expect("an export");
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("ironthread-engine: {error}");
            return ExitCode::from(2);
        }
    };
    if !options.quiet && log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let (listener, address) = match (&options.unix, &options.listen) {
        (Some(path), _) => {
            let _ = std::fs::remove_file(path);
            (UnixListener::bind(path).map(Listener::Unix), path.clone())
        }
        (None, address) => {
            let address = address.as_deref().unwrap_or("127.0.0.1:10809");
            let listener = TcpListener::bind(address);
            let bound = listener
                .as_ref()
                .ok()
                .and_then(|l| l.local_addr().ok())
                .map(|a| a.to_string());
            (
                listener.map(Listener::Tcp),
                bound.unwrap_or_else(|| address.into()),
            )
        }
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("ironthread-engine: {address}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let count = options.cores.unwrap_or(2);
    let disks = options.disks;
    let devices: Vec<&'static TestDevice> = disks
        .iter()
        .filter_map(|disk| {
            if let Disk::File(_, device, _) = disk {
                Some(*device)
            } else {
                None
            }
        })
        .collect();
    let listener = std::sync::Arc::new(std::sync::Mutex::new(Some(listener)));
    let network = count - 1;
    let prepare = move |core: usize| devices.iter().for_each(|device| device.start(core));
    let begin = move || {
        export_all(&disks);
        let start = move |_: usize| {
            let listener = listener
                .lock()
                .expect("no panic inside")
                .take()
                .expect("started once");
            nbd::start(network, &sockets::wake).expect("the server starts");
            sockets::start(network, listener, nbd::server());
            println!("ready {address}");
        };
        let start: &'static (dyn Fn(usize) + Sync) = Box::leak(Box::new(start));
        let context = ironthread::aio::context(network);
        context
            .schedule_oneshot("start network", ironthread::aio::Callback::new(start, 0))
            .expect("a one-shot");
    };
    cores::start(count, prepare, begin).wait();
    ExitCode::SUCCESS
}
