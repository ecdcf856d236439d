"""Programs that people use: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, on a real ext4 file system."""
import hashlib
import json
import os
import pathlib
import random
import subprocess

from harness import ROOT, STANDIN, Disk, Failure, check, run

SIZE = 64 << 20


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_system(context, name):
    """An image with an ext4 file system that holds this project's sources and some random files."""
    image = context.folder / name
    if image.exists():
        return image
    tree = context.folder / "tree"
    tree.mkdir()
    run(["cp", "-r", ROOT / "src", ROOT / "tests", tree])
    noise = random.Random(context.seed)
    for number in range(8):
        (tree / f"noise-{number}").write_bytes(noise.randbytes(700_001))
    context.image(name, SIZE)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image])
    return image


def report(machine):
    """Prints what the machine knows of a client that hangs, if it answers itself."""
    for line in ("info connections", "info drain", "info contexts"):
        try:
            said = machine.console(line)
        except (Failure, OSError) as error:
            return print(f"  {machine.name}: no answer to {line}: {error}", flush=True)
        print(f"  {machine.name}: {line}\n" + "".join(f"    {row}\n" for row in said.splitlines()), end="", flush=True)


def fio(machine, *words, jobs=4, depth=32, seconds=4, size="8m", patience=120):
    """Runs fio's nbd engine on a machine; its parsed result. What does not end in `patience` seconds more than it should take is a
    failure, behind a report of the machine."""
    output = run(["fio", "--name=job", "--ioengine=nbd", f"--uri={machine.uri}", f"--numjobs={jobs}", f"--iodepth={depth}",
                  "--thread=1", "--group_reporting=1", "--verify_state_save=0", "--output-format=json", f"--size={size}", f"--offset_increment={size}",
                  f"--runtime={seconds}", *words], timeout=seconds + patience, stuck=lambda: report(machine))
    result = json.loads(output[output.index("{"):])["jobs"][0]
    check(result["error"] == 0, f"fio: error {result['error']}")
    return result


def nbdinfo_json(*words):
    """What nbdinfo prints as JSON, without what `file`, which it calls, may say before it (where there is no `file`)."""
    output = run(["nbdinfo", "--json", *words])
    return json.loads(output[output.index("{"):output.rindex("}") + 1])


def listing(uri):
    """What nbdinfo says of the two exports."""
    listed = nbdinfo_json("--list", uri)["exports"]
    names = {export["export-name"]: export for export in listed}
    check({"vd0", "vd1"} <= set(names), f"nbdinfo --list: {sorted(names)}")
    check(names["vd0"]["export-size"] == SIZE and not names["vd0"]["is_read_only"], f"vd0: {names['vd0']}")
    check(names["vd1"]["export-size"] == 3 << 20 and names["vd1"]["is_read_only"], f"vd1: {names['vd1']}")
    for export in ("vd0", "vd1"):
        check(names[export]["can_multi_conn"] and names[export]["can_cache"], f"{export}: {names[export]}")
    check(run(["nbdinfo", "--size", uri]).strip() == str(SIZE), "nbdinfo --size")
    check(run(["nbdinfo", "--size", f"{uri}/vd1"]).strip() == str(3 << 20), "nbdinfo --size of vd1")
    about = nbdinfo_json(uri)
    check(about["protocol"] == "newstyle-fixed" and about["structured"], f"nbdinfo: {about}")
    run(["nbdinfo", "--can", "flush", uri]), run(["nbdinfo", "--can", "fua", uri]), run(["nbdinfo", "--can", "multi-conn", uri])
    check("allocated" in run(["nbdinfo", "--map", f"{uri}/vd0"]) or "data" in run(["nbdinfo", "--map", f"{uri}/vd0"]), "nbdinfo --map")
    status, said = run(["nbdinfo", f"{uri}/nonesuch"], ok=False)
    check(status != 0, f"an unknown export was opened: {said}")


def client_round(context, **options):
    """Every program once, against one machine."""
    source = file_system(context, "fs.img")
    image = context.image("disk.img", SIZE)
    readonly = context.image("second.img", 3 << 20)
    with context.machine([Disk(image, "first"), Disk(readonly, "second", readonly=True)], name="clients", **options) as machine:
        uri = machine.uri
        if not STANDIN:
            listing(uri)
        run(["nbdcopy", "--flush", source, uri])
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri])
        copy = context.folder / "copy.img"
        run(["nbdcopy", uri, copy])
        check(digest(copy) == digest(source), "nbdcopy out does not give back what was copied in")
        run(["e2fsck", "-fn", copy])
        # A comparison that cannot fail proves nothing: one changed byte must be seen.
        run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 512", copy])
        status, _ = run(["qemu-img", "compare", "-f", "raw", "-F", "raw", copy, uri], ok=False)
        check(status == 1, "qemu-img compare did not see a changed block")
        converted = context.folder / "copy.qcow2"
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, converted])
        run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", converted, source])
        run(["qemu-img", "convert", "-n", "-W", "-f", "qcow2", "-O", "raw", converted, uri])
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri])

        patterns = ["write -P 0x11 0 64k", "write -P 0x22 32k 4k", "read -P 0x11 0 32k", "read -P 0x22 32k 4k",
                    "read -P 0x11 36k 28k", "write -z 4k 8k", "read -P 0 4k 8k", "write -f -P 0x33 1M 512", "read -P 0x33 1M 512",
                    "write -P 0x44 2M 3M", "read -P 0x44 2M 3M", "discard 2M 1M", "flush", "aio_write -P 0x55 8M 1M",
                    "aio_write -P 0x66 9M 1M", "aio_flush", "read -P 0x55 8M 1M", "read -P 0x66 9M 1M", "write -zu 9M 64k",
                    "read -P 0 9M 64k"]
        said = run(["qemu-io", "-f", "raw", *[word for p in patterns for word in ("-c", p)], uri])
        check("Pattern verification failed" not in said and "failed" not in said, f"qemu-io: {said}")
        status, said = run(["qemu-io", "-f", "raw", "-c", "read -P 0x77 8M 4k", uri], ok=False)
        check("Pattern verification failed" in said, "qemu-io did not see a wrong pattern")
        status, said = run(["qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", f"{uri}/vd1"], ok=False)
        check(STANDIN or status != 0 or "ermitted" in said or "ead-only" in said or "ead only" in said, f"write to the read-only export: {said}")

        result = fio(machine, "--rw=randrw", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--loops=1", "--time_based=0",
                     size="2m")
        check(result["write"]["total_ios"] > 0 and result["read"]["total_ios"] > 0, "fio did nothing")
        if not options:
            timed = fio(machine, "--rw=randread", "--bs=4k", "--time_based=1", seconds=3)
            context.note(f"fio, 4 connections at depth 32: {timed['read']['iops']:.0f} reads of 4 KiB a second")
        machine.power_off()


def test_clients(context):
    """nbdinfo, nbdcopy, qemu-img, qemu-io and fio with verification on an ext4 image."""
    client_round(context)
