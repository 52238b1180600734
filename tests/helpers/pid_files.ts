/** Every kind of PID file that Lima 1.0 to 2.3 reads or writes in an instance directory. */
export const PID_FILES = [
  "ha.pid",
  "vz.pid",
  "qemu.pid",
  "krunkit.pid",
  "x.pid",
  "x.drv.pid",
  "lima-driver-x-ha.pid",
] as const;

/** And the one of a network that instances share, below LIMA_HOME. */
export const USERNET = "_networks/user-v2/usernet_user-v2.pid";
