//! The engine as a process, contexts on threads, real sockets: raw clients on several connections, and the ordinary tools
//! where they are installed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ironthread::export::nbd::wire::*;

struct Engine {
    child: Child,
    folder: PathBuf,
}

impl Engine {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let folder =
            std::env::temp_dir().join(format!("ironthread-engine-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ironthread-engine"))
            .arg("--quiet")
            .arg("--unix")
            .arg(folder.join("socket"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("ready "), "{line}");
        Self { child, folder }
    }

    fn connect(&self, export: &str) -> Raw {
        let mut stream = UnixStream::connect(self.folder.join("socket")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let mut greeting = [0; Greeting::LEN];
        stream.read_exact(&mut greeting).unwrap();
        assert!(Greeting::parse(&greeting).is_some());
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        let option = OptionHeader {
            option: option::EXPORT_NAME,
            length: export.len() as u32,
        };
        stream.write_all(&option.emit()).unwrap();
        stream.write_all(export.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        Raw { stream, cookie: 0 }
    }

    fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.folder.join("socket").display()
        )
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Raw {
    stream: UnixStream,
    cookie: u64,
}

impl Raw {
    fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        };
        self.stream.write_all(&header.emit()).unwrap();
        self.stream.write_all(data).unwrap();
        self.cookie
    }

    fn reply(&mut self) -> SimpleReply {
        let mut reply = [0; SimpleReply::LEN];
        self.stream.read_exact(&mut reply).unwrap();
        SimpleReply::parse(&reply).unwrap()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.send(command::WRITE, 0, offset, data.len() as u32, data);
        assert_eq!(self.reply(), SimpleReply { error: 0, cookie });
    }

    fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let cookie = self.send(command::READ, 0, offset, length, &[]);
        assert_eq!(self.reply(), SimpleReply { error: 0, cookie });
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).unwrap();
        data
    }
}

fn tool(name: &str) -> Option<Command> {
    let found =
        std::env::split_paths(&std::env::var_os("PATH")?).any(|folder| folder.join(name).exists());
    if !found {
        eprintln!("skip: {name} is not installed");
    }
    found.then(|| Command::new(name))
}

#[test]
fn several_clients_on_several_cores() {
    for cores in ["1", "2", "4"] {
        let engine = Engine::start(
            &format!("clients-{cores}"),
            &["--cores", cores, "--ram", "ram:64M"],
        );
        std::thread::scope(|scope| {
            for client in 0..4u64 {
                let engine = &engine;
                scope.spawn(move || {
                    let base = client * (16 << 20);
                    let mut connection = engine.connect("ram");
                    for round in 0..150u64 {
                        let length = [512, 4096, 65536, 300 * 1024, 2 << 20][round as usize % 5];
                        let offset = base + round * 7919 % 28 * 512;
                        let data: Vec<u8> = (0..length)
                            .map(|i| (i as u64 * 31 + round + client) as u8)
                            .collect();
                        connection.write(offset, &data);
                        assert!(connection.read(offset, length as u32) == data);
                        if round % 10 == 9 {
                            // Leave in the middle of things, and come back.
                            connection.send(command::READ, 0, base, 1 << 20, &[]);
                            connection.send(
                                command::WRITE,
                                0,
                                base + (12 << 20),
                                1 << 20,
                                &[1; 1000],
                            );
                            connection = engine.connect("ram");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn a_batch_is_answered_in_full() {
    let engine = Engine::start("batch", &["--null", "null:1G"]);
    let mut connection = engine.connect("null");
    let mut reader = Raw {
        stream: connection.stream.try_clone().unwrap(),
        cookie: 0,
    };
    let sender = std::thread::spawn(move || {
        for request in 0..20_000u64 {
            connection.send(command::READ, 0, request % 1000 * 4096, 4096, &[]);
        }
        connection.send(command::DISC, 0, 0, 0, &[]);
        connection
    });
    let mut data = [0; 4096];
    for _ in 0..20_000 {
        assert_eq!(reader.reply().error, 0);
        reader.stream.read_exact(&mut data).unwrap();
    }
    assert_eq!(reader.stream.read(&mut data).unwrap(), 0);
    sender.join().unwrap();
}

#[test]
fn nbdcopy_there_and_back() {
    let Some(mut there) = tool("nbdcopy") else {
        return;
    };
    let engine = Engine::start("copy", &["--cores", "2", "--ram", "ram:32M"]);
    let (from, to) = (engine.folder.join("from"), engine.folder.join("to"));
    let bytes: Vec<u8> = (0..32u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(&from, &bytes).unwrap();
    assert!(
        there
            .arg("--flush")
            .arg(&from)
            .arg(engine.uri("ram"))
            .status()
            .unwrap()
            .success()
    );
    assert!(
        Command::new("nbdcopy")
            .arg(engine.uri("ram"))
            .arg(&to)
            .status()
            .unwrap()
            .success()
    );
    assert!(std::fs::read(&to).unwrap() == bytes);
}

#[test]
fn nbdinfo_sees_the_exports() {
    let Some(mut nbdinfo) = tool("nbdinfo") else {
        return;
    };
    let engine = Engine::start("info", &["--ram", "one:1M", "--null", "two:2G"]);
    let output = nbdinfo
        .arg("--json")
        .arg("--list")
        .arg(engine.uri(""))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("\"one\"") && text.contains("\"two\""),
        "{text}"
    );
    let output = tool("nbdinfo")
        .unwrap()
        .arg("--size")
        .arg(engine.uri("two"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        (2u64 << 30).to_string()
    );
}
