//! The grammar of the boot options, and what stays shut when a word is malformed.

use std::string::ToString;

use super::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn nothing_given_is_dhcp_listening_and_read_only() {
    let options = Options::parse("  ");
    assert_eq!(options.ip, IpConfig::Dhcp);
    assert_eq!(options.nic, Nic::First);
    assert_eq!(options.listen.unwrap().to_string(), "0.0.0.0:10809");
    assert!(options.allow.is_none() && options.exports.is_none() && options.problems.is_empty());
    assert_eq!(options.panic, OnPanic::Stop);
    assert_eq!(options.log, log::LevelFilter::Info);
}

#[test]
fn every_option_is_read() {
    let options = Options::parse(
        "ironthread.ip=10.0.2.15/24,10.0.2.2 ironthread.nic=52:54:00:12:34:56 ironthread.listen=10.0.2.15:7777\n\
         ironthread.allow=10.0.0.0/8,192.168.1.7 ironthread.export=vd0:rw,DISK-7:ro:backup,vd12 ironthread.log=debug \
         ironthread.panic=reboot",
    );
    assert!(options.problems.is_empty(), "{:?}", options.problems);
    assert_eq!(
        options.ip,
        IpConfig::Static {
            address: Cidr {
                address: ip("10.0.2.15"),
                prefix: 24
            },
            gateway: Some(ip("10.0.2.2"))
        }
    );
    assert_eq!(options.nic, Nic::Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    assert_eq!(options.listen.unwrap().port(), 7777);
    assert_eq!(options.allow.unwrap().len(), 2);
    let exports = options.exports.unwrap();
    let seen: std::vec::Vec<_> = exports
        .iter()
        .map(|e| (e.disk.to_string(), e.writable, e.name.to_string()))
        .collect();
    let want = [
        ("vd0", true, "vd0"),
        ("DISK-7", false, "backup"),
        ("vd12", false, "vd12"),
    ];
    assert_eq!(
        seen,
        want.map(|(d, w, n)| (d.to_string(), w, n.to_string()))
    );
    assert_eq!(exports[0].disk, DiskSelector::Index(0));
    assert_eq!(options.log, log::LevelFilter::Debug);
    assert_eq!(options.panic, OnPanic::Reboot);
}

#[test]
fn malformed_words_are_named_and_keep_things_shut() {
    for word in [
        "ironthread.ip=10.0.2.15",
        "ironthread.ip=10.0.2.15/33",
        "ironthread.ip=x",
        "ironthread.ip=10.0.2.15/24,10.0.3.2",
        "ironthread.ip=0.0.0.0/0",
        "ironthread.ip=",
        "ironthread.ip=10.0.2.15/-1",
    ] {
        let options = Options::parse(word);
        assert_eq!(options.ip, IpConfig::Off, "{word}");
        assert_eq!(options.problems.len(), 1, "{word}");
        assert!(options.problems[0].to_string().contains(word));
    }
    for word in [
        "ironthread.listen=10809",
        "ironthread.listen=:1",
        "ironthread.listen=1.2.3.4:0",
        "ironthread.listen=1.2.3.4:70000",
    ] {
        let options = Options::parse(word);
        assert_eq!(
            (options.listen, options.problems.len()),
            (None, 1),
            "{word}"
        );
    }
    let options = Options::parse("ironthread.allow=10.0.0.0/8,nonsense");
    assert_eq!(options.allow.unwrap().len(), 0);
    for word in [
        "vd0:rx",
        "",
        "vd0:rw:",
        "vd0:rw:a:b",
        ":rw",
        "vd0:name",
        "a-serial-of-21-bytes..",
    ] {
        let options = Options::parse(&std::format!("ironthread.export={word}"));
        assert_eq!(options.exports.unwrap().len(), 0, "{word}");
        assert_eq!(options.problems.len(), 1, "{word}");
    }
    let options = Options::parse("ironthread.export=vd0:rw,vd1:zz,vd2");
    assert_eq!(
        (options.exports.unwrap().len(), options.problems.len()),
        (2, 1)
    );
}

#[test]
fn unknown_words_and_repetitions_are_named() {
    let options = Options::parse(
        "console=ttyAMA0 quiet ironthread.foo=1 ironthread.ip=off ironthread.ip=dhcp",
    );
    assert_eq!(options.problems.len(), 4);
    assert_eq!(options.ip, IpConfig::Off);
    let many: std::string::String = (0..20).map(|n| std::format!("x{n} ")).collect();
    let options = Options::parse(&many);
    assert_eq!(
        (options.problems.len(), options.more_problems),
        (MAX_PROBLEMS, 12)
    );
    let options = Options::parse("a\u{1b}[2J=1");
    assert_eq!(options.problems[0].word, "a?[2J=1");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(ironthread\\.(ip|nic|listen|allow|export|log|panic)=[ -~]{0,40} ?){0,6}", junk in "\\PC{0,80}") {
        Options::parse(&text);
        Options::parse(&junk);
    }
}
