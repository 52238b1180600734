/**
 * What a process is to an instance: `judge()`, one test per command line. The command lines are Lima's own (those
 * marked "recorded" were printed by Lima 2.2.0), or those of processes that only look so.
 */

import assert from "node:assert/strict";
import fc from "fast-check";
import { judge, kindOfPidFile } from "../lima_guard.ts";
import type { Instance, SameDirectory } from "./facts.ts";
import { DIR, HOME, PLACE, row } from "./observations.ts";

interface Case {
  readonly command: string;
  readonly uid?: number;
  /** LIMA_HOME, where it is not the usual one. */
  readonly home?: string;
  /** The directories that sameDirectory is asked about, with its answers. It is asked about no other. */
  readonly same?: Record<string, ReturnType<SameDirectory>>;
  /** A program whose path holds blanks, and that is there. */
  readonly file?: string;
}

/** `ours: ROLE`, `not ours: WHY` or `unknown: ROLE`: why something is unknown has tests of its own below. */
function test(name: string, expected: string, { command, uid = 501, home = HOME, same = {}, file }: Case): void {
  Deno.test(`judge() ${expected.replace(/:.*/, "")}: ${name}`, () => {
    const place: Instance = { ...PLACE, home, dir: `${home}/k3s` };
    const asked = new Set<string>();
    const sameDirectory: SameDirectory = (named, ours) => {
      assert.ok([place.dir, home].includes(ours), `compared with ${ours}`);
      asked.add(named);
      return same[named] ?? assert.fail(`asked about ${named}, which is no other spelling`);
    };
    const judgement = judge(row(command, { uid }), place, sameDirectory, (path) => {
      assert.ok(`${command} `.startsWith(`${path} `), `asked about ${path}, which is no beginning of the command`);
      return path === file;
    });
    const detail = judgement.kind === "not ours" ? judgement.why : judgement.role ?? "no role";
    assert.equal(`${judgement.kind}: ${detail}`, expected);
    if (judgement.kind !== "ours") assert.notEqual(judgement.why, "");
    assert.deepEqual([...asked].sort(), Object.keys(same).sort(), "directories compared");
  });
}

const agent = (dir: string, program = "limactl", flags = "") =>
  `${program}${flags} hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock k3s`;
const usernet = (home: string, network = "user-v2") =>
  `limactl usernet -p ${home}/_networks/${network}/usernet_${network}.pid -e ${home}/_networks/${network}/` +
  `${network}_ep.sock --listen-qemu ${home}/_networks/${network}/${network}_qemu.sock --subnet 192.168.104.0/24`;
const qemu = (dir: string, program = "/opt/homebrew/bin/qemu-system-aarch64") =>
  `${program} -m 4096 -drive file=${dir}/diffdisk,if=none -name lima-k3s -pidfile ${dir}/qemu.pid`;
const krunkit = (file: string) =>
  `/opt/homebrew/bin/krunkit --memory 4096 --device virtio-blk,path=${file},format=raw ` +
  "--device virtio-net,type=unixgram,path=/tmp/net.sock,mac=52:55:55:68:6b:9e --restful-uri none://";

// ── Lima's own shapes ──

test("the host agent", "ours: host agent", { command: agent(DIR) });
test("the host agent by its path", "ours: host agent", { command: agent(DIR, "/opt/homebrew/bin/limactl") });
test("the host agent with flags before its word", "ours: host agent", {
  command: agent(DIR, "limactl", " --debug --log-level=debug"),
});
test("the host agent with everything that Lima may add", "ours: host agent", {
  command: `limactl --debug hostagent --pidfile ${DIR}/ha.pid --socket ${DIR}/ha.sock --run-gui --guestagent ` +
    "/opt/homebrew/share/lima/lima-guestagent.Linux-aarch64.gz --nerdctl-archive /tmp/n.tgz --progress k3s",
});
test("the PID file is the last argument", "ours: host agent", {
  command: `limactl hostagent --socket ${DIR}/ha.sock --pidfile ${DIR}/ha.pid`,
});
test("QEMU", "ours: QEMU", { command: qemu(DIR) });
test("QEMU whose PID file is not last", "ours: QEMU", {
  command: `qemu-system-x86_64 -pidfile ${DIR}/qemu.pid -name lima-k3s -m 4096`,
});
test("QEMU of a longer name", "ours: QEMU", { command: qemu(DIR, "/opt/qemu/bin/qemu-system-aarch64-unsigned") });
test("krunkit with Lima 2.2's disk", "ours: krunkit", { command: krunkit(`${DIR}/disk`) });
test("krunkit with a diffdisk", "ours: krunkit", { command: krunkit(`${DIR}/diffdisk`) });
test("krunkit with a blank before path=", "ours: krunkit", { command: `krunkit --device path=${DIR}/disk` });
test("krunkit with an additional disk first", "ours: krunkit", {
  command: `krunkit --device virtio-blk,path=${HOME}/_disks/a/datadisk,format=raw ` +
    `--device virtio-blk,path=${DIR}/disk,format=raw`,
});
test("an external driver", "ours: external driver", {
  command: `/usr/local/libexec/lima/lima-driver-x --inst-dir ${DIR}`,
});
test("an external driver with a flag behind", "ours: external driver", {
  command: `lima-driver-x --inst-dir ${DIR} --debug`,
});
test("usernet", "ours: usernet", { command: usernet(HOME) });
test("usernet of a network with a dash", "ours: usernet", { command: usernet(HOME, "my-net_2") });

// The recording was made on Linux, in /home/admin/.lima, for an instance called `real`.
const RECORDED = { name: "real", home: "/home/admin/.lima", dir: "/home/admin/.lima/real", owner: 1500 };
const RECORDED_QEMU = "/usr/bin/qemu-system-x86_64 -m 1024 -cpu max -machine q35,accel=tcg -smp 1,sockets=1,cores=1," +
  "threads=1 -device qemu-xhci,id=usb-bus -drive file=DIR/disk,if=none,discard=on,id=boot-disk -device virtio-blk-pci," +
  "drive=boot-disk,bootindex=1 -boot order=c,splash-time=0,menu=on -drive id=cdrom0,if=none,format=raw,readonly=on," +
  "file=DIR/cidata.iso -device virtio-scsi,id=scsi0 -device scsi-cd,bus=scsi0.0,drive=cdrom0 -kernel DIR/kernel " +
  "-append root=/dev/vda rw console=ttyS0 net.ifnames=0 -initrd DIR/initrd -netdev user,id=net0,net=192.168.5.0/24," +
  "dhcpstart=192.168.5.15,hostfwd=tcp:127.0.0.1:36541-:22 -device virtio-net-pci,netdev=net0,mac=52:55:55:68:6b:9e " +
  "-device virtio-rng-pci -audiodev none,id=snd0 -display none -vga none -parallel none -chardev socket," +
  "id=char-serial,path=DIR/serial.sock,server=on,wait=off,logfile=DIR/serial.log -serial chardev:char-serial " +
  "-chardev socket,id=char-serial-virtio,path=DIR/serialv.sock,server=on,wait=off,logfile=DIR/serialv.log -device " +
  "virtio-serial-pci,id=virtio-serial0,max_ports=1 -device virtconsole,chardev=char-serial-virtio,id=console0 " +
  "-chardev socket,id=char-qmp,path=DIR/qmp.sock,server=on,wait=off -qmp chardev:char-qmp -name lima-real -pidfile " +
  "DIR/qemu.pid";
const RECORDINGS = [
  ["/usr/local/bin/limactl hostagent --pidfile DIR/ha.pid --socket DIR/ha.sock real", {
    kind: "ours",
    role: "host agent",
  }],
  [RECORDED_QEMU, { kind: "ours", role: "QEMU" }],
  ["ssh: DIR/ssh.sock [mux]", { kind: "not ours", why: 'it is "ssh:", none of Lima\'s programs' }],
] as const;
for (const [command, expected] of RECORDINGS) {
  Deno.test(`judge() recorded: ${command.slice(0, 40)}…`, () => {
    const printed = row(command.replaceAll("DIR", RECORDED.dir), { uid: 1500 });
    assert.deepEqual(judge(printed, RECORDED, () => assert.fail("no other spelling is here")), expected);
  });
}

// ── paths and programs with awkward characters ──

for (
  const home of [
    "/Volumes/My VMs/.lima",
    "/Volumes/two  blanks/.lima",
    '/Volumes/O\'Brien "server"/.lima',
    "/Volumes/a+b (c) [d] {e} $f ^g|h\\i.j*/.lima",
    "/Volumes/vms, old/.lima",
    "/Volumes/ends in a blank ",
  ]
) {
  test(`everything under ${home}`, "ours: host agent", { command: agent(`${home}/k3s`), home });
  test(`QEMU under ${home}`, "ours: QEMU", { command: qemu(`${home}/k3s`), home });
  test(`usernet under ${home}`, "ours: usernet", { command: usernet(home), home });
  test(`an external driver under ${home}`, "ours: external driver", {
    command: `lima-driver-x --inst-dir ${home}/k3s`,
    home,
  });
}
test("a dot in the path stands for a dot only", "not ours: it is the host agent of another directory", {
  command: agent("/Users/zoe/xlima/k3s"),
  same: { "/Users/zoe/xlima/k3s": "different" },
});
// Where a program's path ends cannot be known from blanks alone: a shell or a debugger may look so. A file of that name
// makes it certain; so does the whole grammar of a host agent, where what stands before the blank is no program.
const BLANKS = [
  ["host agent", "/Users/zoe/My Tools/bin/limactl", (program: string) => agent(DIR, program)],
  ["host agent", "/Volumes/Tools (old) [2]/bin/limactl", (program: string) => agent(DIR, program, " --debug")],
  ["host agent", "/Applications/Rancher Desktop.app/lima/bin/limactl.ventura", (p: string) => agent(DIR, p)],
  ["QEMU", "/Applications/Big Tools.app/Contents/qemu-system-aarch64", (program: string) => qemu(DIR, program)],
  ["external driver", "/My Tools/lima-driver-x", (program: string) => `${program} --inst-dir ${DIR}`],
] as const;
for (const [role, program, command] of BLANKS) {
  test(`${program}, which is a file`, `ours: ${role}`, { command: command(program), file: program });
  const expected = role === "host agent" ? `ours: ${role}` : `unknown: ${role}`;
  test(`${program}, which is no file`, expected, { command: command(program) });
}
// The program is the first of two, whatever lies on the disk.
for (
  const [role, wrapped, command] of [
    ["host agent", "/bin/sh -c /usr/bin/limactl", (program: string) => agent(DIR, program)],
    ["host agent", "/usr/bin/sudo /usr/local/bin/limactl", (program: string) => agent(DIR, program)],
    ["host agent", "/usr/bin/lldb ./limactl", (program: string) => agent(DIR, program)],
    ["host agent", "/usr/bin/strace bin/limactl", (program: string) => agent(DIR, program)],
    ["host agent", "/opt/tools/tracer /usr/bin/limactl", (program: string) => agent(DIR, program)],
    ["krunkit", "/bin/sh -c /opt/homebrew/bin/krunkit", (program: string) => `${program} path=${DIR}/disk`],
  ] as const
) {
  test(`${wrapped}, a program and its argument`, `unknown: ${role}`, { command: command(wrapped) });
}
test("/opt/tools/tracer limactl, a program and its argument", "unknown: no role", {
  command: agent(DIR, "/opt/tools/tracer limactl"),
});
test("a program with an argument that looks like the rest of its path", "unknown: host agent", {
  command: agent(DIR, "/opt/tools/tracer bin/limactl"),
  file: "/opt/tools/tracer",
});
for (const program of ["./limactl", "bin/limactl"]) {
  test(`a relative path, ${program}`, "unknown: host agent", { command: agent(DIR, program) });
}

// ── characters beyond ASCII: as they are, and as ps prints bytes that it cannot print ──

// ë composed is C3 AB, decomposed 65 CC 88; à ends in A0, a blank with the high bit; 日 is E6 97 A5. vis(3) writes M-
// and the lower seven bits, M^ where those are a control character, and octal where they are a blank.
test("a path beyond ASCII as it is", "ours: host agent", {
  command: agent("/Users/zoë/.lima/k3s"),
  home: "/Users/zoë/.lima",
});
for (
  const [path, printed] of [
    ["/Users/zo\u00eb/.lima", "/Users/zoM-CM-+/.lima"],
    ["/Users/zoe\u0308/.lima", "/Users/zoeM-LM^H/.lima"],
    ["/Users/voil\u00e0/.lima", "/Users/voilM-C\\240/.lima"],
    ["/Volumes/\u65e5/.lima", "/Volumes/M-fM^WM-%/.lima"],
    ["/Volumes/a\tb\x01c/.lima", "/Volumes/a\\011b^Ac/.lima"],
    ["/Volumes/\u00ff/.lima", "/Volumes/M-CM-?/.lima"],
    ["/Volumes/tre\u0300s vieux/.lima", "/Volumes/treM-LM^@s vieux/.lima"],
    ["/Volumes/\u00e9 (1)^\x7f/.lima", "/Volumes/M-CM-) (1)^^?/.lima"],
  ] as const
) {
  test(`ps printed ${printed} for the host agent's path`, "ours: host agent", {
    command: agent(`${printed}/k3s`),
    home: path,
  });
  test(`ps printed ${printed} for QEMU's path`, "ours: QEMU", { command: qemu(`${printed}/k3s`), home: path });
}
// One `?` stands for any byte: another directory of the same user may look just so.
test("procps printed ? for the bytes of ë", "unknown: host agent", {
  command: agent("/home/zo??/.lima/k3s"),
  home: "/home/zoë/.lima",
  same: { "/home/zo??/.lima/k3s": "cannot tell" },
});

// ── other spellings of a directory: device and inode decide ──

for (
  const [what, home, spelling] of [
    ["another case", HOME, "/users/Zoe/.LIMA"],
    ["macOS's firmlink", HOME, "/System/Volumes/Data/Users/zoe/.lima"],
    ["/var for /private/var", "/private/var/lima", "/var/lima"],
    ["NFD for NFC", "/Users/zo\u00eb/.lima", "/Users/zoe\u0308/.lima"],
    ["NFC for NFD", "/Users/zoe\u0308/.lima", "/Users/zo\u00eb/.lima"],
    ["another byte in vis(3)'s writing", "/Users/zo\u00eb/.lima", "/Users/zoM-CM-)/.lima"],
  ] as const
) {
  const dir = `${spelling}/k3s`;
  test(`${what}, the same directory`, "ours: host agent", { command: agent(dir), home, same: { [dir]: "same" } });
  test(`${what}, another directory`, "not ours: it is the host agent of another directory", {
    command: agent(dir),
    home,
    same: { [dir]: "different" },
  });
  test(`${what}, cannot be found out`, "unknown: host agent", {
    command: agent(dir),
    home,
    same: { [dir]: "cannot tell" },
  });
}
const LINK = "/Users/zoe/link-to-lima";
for (
  const [role, dir, command] of [
    ["QEMU", `${LINK}/k3s`, qemu(`${LINK}/k3s`)],
    ["krunkit", `${LINK}/k3s`, krunkit(`${LINK}/k3s/disk`)],
    ["external driver", `${LINK}/k3s`, `lima-driver-x --inst-dir ${LINK}/k3s`],
    ["usernet", LINK, usernet(LINK)],
  ] as const
) {
  test(`${role} of the same directory by a link`, `ours: ${role}`, { command, same: { [dir]: "same" } });
  test(`${role} of another directory`, `not ours: it is the ${role} of another directory`, {
    command,
    same: { [dir]: "different" },
  });
  test(`${role} of a directory that cannot be looked at`, `unknown: ${role}`, {
    command,
    same: { [dir]: "cannot tell" },
  });
}

// A path may continue behind a blank, and what stands before it may look like a disk's.
for (const disk of ["disk", "diffdisk"]) {
  test(
    `krunkit of the same directory by a link, with a folder called disk above it, its disk ${disk}`,
    "ours: krunkit",
    {
      command: krunkit(`${LINK}/disk 1/k3s/${disk}`),
      same: { [LINK]: "different", [`${LINK}/disk 1/k3s`]: "same" },
    },
  );
}

// ── other instances ──

for (const name of ["k3s-2", "k3s2", "k3", "k3s.2", "K3S"]) {
  test(`the host agent of ${name}`, "not ours: it is the host agent of another directory", {
    command: agent(`${HOME}/${name}`).replace(/k3s$/, name),
    same: { [`${HOME}/${name}`]: "different" },
  });
  test(`the external driver of ${name}`, "not ours: it is the external driver of another directory", {
    command: `lima-driver-x --inst-dir ${HOME}/${name}`,
    same: { [`${HOME}/${name}`]: "different" },
  });
}
for (
  const [role, command] of [["host agent", agent], ["QEMU", qemu]] as const
) {
  test(`the ${role} of the same name in another LIMA_HOME`, `not ours: it is the ${role} of another directory`, {
    command: command("/Users/zoe/.colima/_lima/k3s"),
    same: { "/Users/zoe/.colima/_lima/k3s": "different" },
  });
}
test("a path that ends in ours", "not ours: it is the host agent of another directory", {
  command: agent(`/Volumes/backup${DIR}`),
  same: { [`/Volumes/backup${DIR}`]: "different" },
});
test("usernet of another LIMA_HOME", "not ours: it is the usernet of another directory", {
  command: usernet("/Users/zoe/.colima/_lima"),
  same: { "/Users/zoe/.colima/_lima": "different" },
});
test("krunkit of another instance, an additional disk first", "not ours: it is the krunkit of another directory", {
  command: `krunkit --device virtio-blk,path=${HOME}/_disks/a/datadisk,format=raw ` +
    `--device virtio-blk,path=${HOME}/k3s-2/disk,format=raw`,
  same: { [`${HOME}/k3s-2`]: "different" },
});

// ── our path, but not where it proves anything ──

const QEMU_WITHOUT = "not ours: it is a QEMU without the PID file that Lima gives to each of its own";
test("QEMU with -name lima-NAME only", QEMU_WITHOUT, { command: "qemu-system-aarch64 -name lima-k3s -m 4096" });
test("QEMU with our disk and another PID file", QEMU_WITHOUT, {
  command: `qemu-system-aarch64 -name lima-k3s -drive file=${DIR}/diffdisk -pidfile /tmp/test.pid`,
});
test("QEMU of another directory with our disk", "not ours: it is the QEMU of another directory", {
  command: `${qemu("/tmp/copy")} -drive file=${DIR}/diffdisk`,
  same: { "/tmp/copy": "different" },
});
test("QEMU that has the PID file as a drive", "unknown: no role", {
  command: `qemu-system-aarch64 -drive file=${DIR}/qemu.pid`,
});
test("the PID file after another flag", "unknown: no role", {
  command: `limactl hostagent --socket ${DIR}/ha.pid k3s`,
});
test("the PID file one argument too late", "unknown: host agent", {
  command: `limactl hostagent --pidfile /tmp/x ${DIR}/ha.pid`,
  same: { [`/tmp/x ${DIR}`]: "cannot tell" },
});
test("a relative PID file", "unknown: no role", { command: "limactl hostagent --pidfile ha.pid k3s" });
test("a relative directory", "unknown: host agent", { command: "limactl hostagent --pidfile .lima/k3s/ha.pid k3s" });
test("a PID file with a longer name", "unknown: no role", {
  command: `limactl hostagent --pidfile ${DIR}/ha.pid.old k3s`,
});
test("another instance's socket beside our PID file's name", "not ours: it is the host agent of another directory", {
  command: `limactl hostagent --pidfile /tmp/k3s/ha.pid --socket ${DIR}/ha.sock k3s`,
  same: { "/tmp/k3s": "different" },
});
test("krunkit that names our disk elsewhere", "unknown: no role", { command: `krunkit --log-file ${DIR}/disk` });
test("an external driver that names us elsewhere", "unknown: no role", { command: `lima-driver-x --log ${DIR}` });
test("an external driver of Lima 2.0, which has no arguments", "unknown: no role", { command: "lima-driver-x" });
test("usernet whose file has not the network's name", "unknown: no role", {
  command: `limactl usernet -p ${HOME}/_networks/user-v2/usernet_other.pid`,
});

test("a renamed program with the whole grammar, of a directory that cannot be looked at", "unknown: host agent", {
  command: agent(`${LINK}/k3s`, "limactl-2.1"),
  same: { [`${LINK}/k3s`]: "cannot tell" },
});
test("a renamed program with the whole grammar, of a relative directory", "unknown: host agent", {
  command: agent(".lima/k3s", "limactl-2.1"),
});
test("a renamed program, of another directory", 'not ours: it is "my-limactl", none of Lima\'s programs', {
  command: agent(`${HOME}/k3s-2`, "my-limactl"),
  same: { [`${HOME}/k3s-2`]: "different" },
});

// ── commands that only mention Lima ──

for (
  const [program, command] of [
    ["less", `less ${DIR}/ha.pid`],
    ["tail", `tail -f ${DIR}/ha.stdout.log`],
    ["python3", `python3 -c print("limactl hostagent --pidfile ${DIR}/ha.pid")`],
    ["ssh:", `ssh: ${DIR}/ssh.sock [mux]`],
    ["/usr/bin/vim", "/usr/bin/vim limactl"],
    ["/usr/bin/vim", "/usr/bin/vim qemu-system-aarch64 notes"],
    ["/usr/libexec/sirittsd", "/usr/libexec/sirittsd"],
    ["[kworker/0:1]", "[kworker/0:1]"],
    ["(mdworker)", "(mdworker)"],
    ["lima-guard", "lima-guard --run k3s -- limactl start k3s --foreground"],
  ] as const
) {
  test(command, `not ours: it is ${JSON.stringify(program)}, none of Lima's programs`, { command });
}
const CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome Helper (Renderer)";
for (
  const [what, file, shown, command] of [
    ["a program with blanks in its name", CHROME, CHROME, `${CHROME} --type=renderer --lang=de`],
    ["the same without arguments", CHROME, CHROME, CHROME],
    [
      "a program with an argument that continues like a path",
      "/usr/bin/less",
      "/usr/bin/less",
      "/usr/bin/less My notes/a",
    ],
    ["a program that is no file any more", "", "/Applications/Google Chrome.app/Contents/MacOS/Google", CHROME],
    ["a name with a dash between blanks", "/opt/App - Copy", "/opt/App - Copy", "/opt/App - Copy -v"],
  ] as const
) {
  test(what, `not ours: it is ${JSON.stringify(shown)}, none of Lima's programs`, { command, file });
}

// ── programs that are none of Lima's by name, and were given this instance's own files: perhaps only renamed ──

for (const program of ["my-limactl", "limactl.old", "limactl.ventura", "/usr/local/bin/limactl-2.1", "rdd"]) {
  test(`${program}, with the whole grammar of a host agent`, "ours: host agent", { command: agent(DIR, program) });
  test(`${program}, with flags`, "ours: host agent", { command: agent(DIR, program, " --debug --log-level=debug") });
  test(`${program}, by another spelling of the directory`, "ours: host agent", {
    command: agent(`${LINK}/k3s`, program),
    same: { [`${LINK}/k3s`]: "same" },
  });
}
test("another program with the whole grammar, of another user", "unknown: host agent", {
  command: agent(DIR, "my-limactl"),
  uid: 502,
});
for (
  const command of [
    `/opt/limactl/bin/other hostagent --pidfile ${DIR}/ha.pid`,
    `my-limactl hostagent --pidfile ${DIR}/ha.pid --socket ${DIR}/other.sock k3s`,
    `my-limactl serve hostagent --pidfile ${DIR}/ha.pid --socket ${DIR}/ha.sock k3s`,
    qemu(DIR, "/opt/qemu/bin/my-qemu"),
    `my-driver --inst-dir ${DIR}`,
    usernet(HOME).replace("limactl", "limactl-2.1"),
    // A wrapper is none of them, but what it has started may be.
    `sh -c ${agent(DIR)}`,
    `sh -c /usr/bin/${agent(DIR)}`,
    `sudo ${agent(DIR)}`,
    `/usr/bin/sudo ${agent(DIR)}`,
    ...["vim", "php8.4", "/usr/bin/lua", "bun", "java", "osascript", "pwsh", "logger", "docker"].map((program) =>
      `${program} hostagent --pidfile ${DIR}/ha.pid --socket ${DIR}/ha.sock`
    ),
    `env LIMA_HOME=${HOME} ${agent(DIR)}`,
  ]
) {
  test(command, "unknown: no role", { command });
}
for (const program of ["my-qemu", "my-driver"]) {
  const command = program === "my-qemu" ? qemu(`${LINK}/k3s`, program) : `${program} --inst-dir ${LINK}/k3s`;
  test(`${program}, by another spelling of the directory`, "unknown: no role", {
    command,
    same: { [`${LINK}/k3s`]: "same" },
  });
}

// ── programs as distributions call them ──

const NIX = "/nix/store/0c0lvs5xv1nf8n2rkq2kxmlq3b8zr6cd-lima-2.2.0/bin/.limactl-wrapped";
test("the host agent of nixpkgs, which wraps limactl", "ours: host agent", { command: agent(DIR, NIX) });
test("usernet of nixpkgs", "ours: usernet", { command: usernet(HOME).replace("limactl", NIX) });
test("QEMU of nixpkgs", "ours: QEMU", { command: qemu(DIR, "/nix/store/x/bin/.qemu-system-aarch64-wrapped") });
test("a limactl start under another name", "unknown: no role", {
  command: "/Applications/Rancher Desktop.app/lima/bin/limactl.ventura start k3s",
});
test("a limactl start of nixpkgs", "unknown: no role", { command: `${NIX} start k3s --foreground` });
test("QEMU of RHEL", "ours: QEMU", { command: qemu(DIR, "/usr/libexec/qemu-kvm") });

// ── Lima's programs that carry no instance, or do not say which ──

for (
  const words of [
    "list --json",
    "shell k3s",
    "stop k3s",
    "--debug stop k3s",
    "edit k3s",
    "start-at-login k3s",
    "shell other sudo systemctl restart nginx",
    "--debug shell other start",
  ]
) {
  test(`limactl ${words}`, "not ours: it is a limactl that is no host agent", { command: `limactl ${words}` });
}
for (
  const words of [
    "start k3s",
    "start k3s --foreground",
    "--debug start other",
    "restart k3s",
    "start",
    "--log-level info --tty=false start k3s",
  ]
) {
  test(`limactl ${words}, which may become a host agent`, "unknown: no role", { command: `limactl ${words}` });
}
for (
  const command of ["limactl", "(limactl)", "[limactl]", "[qemu-system-x86]", "(qemu-system-aarc)", "(krunkit)", ""]
) {
  test(`only ${JSON.stringify(command)} can be seen`, "unknown: no role", { command });
}
test("a host agent that names nothing", "unknown: no role", { command: "limactl hostagent k3s" });

// ── owners ──

for (const uid of [0, 502, 4_294_967_294]) {
  test(`our shape, run by uid ${uid}`, "unknown: host agent", { command: agent(DIR), uid });
  test(`a host agent of another directory, run by uid ${uid}`, `not ours: it belongs to uid ${uid}`, {
    command: agent("/Users/max/.lima/k3s"),
    uid,
    same: { "/Users/max/.lima/k3s": "different" },
  });
  test(`a host agent of a directory we may not look at, run by uid ${uid}`, `not ours: it belongs to uid ${uid}`, {
    command: agent("/Users/max/.lima/k3s"),
    uid,
    same: { "/Users/max/.lima/k3s": "cannot tell" },
  });
  for (const command of ["/usr/libexec/sirittsd", "limactl start k3s --foreground", "(limactl)", ""]) {
    test(`${JSON.stringify(command)}, run by uid ${uid}`, `not ours: it belongs to uid ${uid}`, { command, uid });
  }
}
test("our QEMU by another spelling, run by root", "unknown: QEMU", {
  command: qemu(`${LINK}/k3s`),
  uid: 0,
  same: { [`${LINK}/k3s`]: "same" },
});

// ── whatever the command ──

Deno.test("judge() takes nothing for ours that does not begin with the program and name our file after its flag", () => {
  const NETWORK = `${HOME}/_networks/user-v2/usernet_user-v2.pid`;
  const words = fc.array(
    fc.oneof(
      fc.constantFrom("hostagent", "--pidfile", `${DIR}/ha.pid`, "-pidfile", `${DIR}/qemu.pid`, "--inst-dir", DIR),
      fc.constantFrom(`x,path=${DIR}/disk,y`, `path=${DIR}/diffdisk`, "usernet", "-p", NETWORK, "--debug", "-c", "k3s"),
      fc.constantFrom("limactl", "/usr/bin/limactl", "./krunkit", "sh", "/bin/sh", `${HOME}/k3s-2/ha.pid`, "start", ""),
      fc.string({ maxLength: 4 }),
    ),
    { maxLength: 7 },
  );
  const start = fc.constantFrom(
    ...["limactl hostagent", "/usr/bin/limactl --debug hostagent", "limactl usernet", "qemu-system-aarch64"],
    ...[
      "/opt/qemu-system-x86_64",
      "krunkit",
      "lima-driver-x",
      "sh -c limactl hostagent",
      "/bin/sh /x/limactl",
      "limactl",
    ],
  );
  let found = 0;
  fc.assert(
    fc.property(start, words, fc.constantFrom(501, 501, 502), (start, words, uid) => {
      const command = [start, ...words].join(" ");
      const judgement = judge(row(command, { uid }), PLACE, () => "different", () => false);
      if (judgement.kind !== "ours") return assert.notEqual(judgement.why, "");
      found++;
      assert.equal(uid, PLACE.owner);
      const all = command.split(" ");
      const follows = (flag: string, value: string) => all.some((w, i) => w === flag && all[i + 1] === value);
      const program = (all[0] ?? "").replace(/^\/.*\//, "");
      const isFirst = (word: string) => all.slice(1).find((w) => !w.startsWith("-")) === word;
      const isProven = {
        "host agent": program === "limactl" && isFirst("hostagent") && follows("--pidfile", `${DIR}/ha.pid`),
        usernet: program === "limactl" && isFirst("usernet") && follows("-p", NETWORK),
        QEMU: program.startsWith("qemu-system-") && follows("-pidfile", `${DIR}/qemu.pid`),
        krunkit: program === "krunkit" && all.some((w) => /(^|,)path=/.test(w) && w.includes(`=${DIR}/di`)),
        "external driver": program === "lima-driver-x" && follows("--inst-dir", DIR),
      };
      assert.ok(isProven[judgement.role], `${judgement.role}: ${command}`);
    }),
    { numRuns: 20_000 },
  );
  assert.ok(found > 200, `only ${found} commands were ours: that proves little`);
});

Deno.test("judge() of any text is a judgement", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 200 }), fc.string({ unit: "grapheme" }), (text, path) => {
      const home = `/${path}`;
      for (
        const command of [
          text,
          `limactl ${text}`,
          agent(text),
          agent(`${home}/k3s`),
          `limactl hostagent --pidfile ${text}`,
        ]
      ) {
        const judgement = judge(row(command), { ...PLACE, home, dir: `${home}/k3s` }, () => "cannot tell", () => true);
        assert.ok(["ours", "not ours", "unknown"].includes(judgement.kind));
      }
      const exact = judge(row(agent(`${home}/k3s`)), { ...PLACE, home, dir: `${home}/k3s` }, () => "different");
      assert.deepEqual(exact, { kind: "ours", role: "host agent" }, home);
    }),
    { numRuns: 2000 },
  );
});

// ── why something is unknown, in words ──

for (
  const [command, uid, why] of [
    ["", 501, "ps shows no command for it"],
    ["limactl start k3s", 501, "it is a `limactl start`, which becomes a host agent under the same PID"],
    ["(krunkit)", 501, "it may be Lima's krunkit, and its command does not tell whose"],
    [agent(DIR), 0, "it looks like this instance's host agent and belongs to uid 0"],
    [agent(".lima/k3s"), 501, "it may be a host agent, and its command does not say of which instance"],
  ] as const
) {
  Deno.test(`judge() says: ${why}`, () => {
    const judgement = judge(row(command, { uid }), PLACE, () => assert.fail("no directory is spelt otherwise here"));
    assert.ok(judgement.kind === "unknown");
    assert.equal(judgement.why, why);
  });
}

for (
  const [file, roles] of [
    ["ha.pid", ["host agent"]],
    ["vz.pid", ["QEMU", "krunkit", "external driver", "host agent"]],
    ["qemu.pid", ["QEMU", "krunkit", "external driver", "host agent"]],
    ["krunkit.pid", ["QEMU", "krunkit", "external driver", "host agent"]],
    ["something-new.pid", ["QEMU", "krunkit", "external driver", "host agent"]],
    ["x.drv.pid", ["external driver"]],
    ["lima-driver-x-ha.pid", ["external driver"]],
    ["lima-driver-x-cli.pid", ["external driver"]],
    ["usernet_user-v2.pid", ["usernet"]],
  ] as const
) {
  Deno.test(`kindOfPidFile() ${file} may name ${roles.join(", ")}`, () => {
    assert.deepEqual([...kindOfPidFile(file).roles].sort(), [...roles].sort());
  });
}
