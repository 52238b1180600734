// Stand-in for @std/path/posix/basename.
export function basename(path: string, suffix = ""): string {
  const name = path.replace(/\/+$/, "").split("/").at(-1) || path.slice(0, 1);
  return suffix !== name && name.endsWith(suffix) ? name.slice(0, name.length - suffix.length) : name;
}
