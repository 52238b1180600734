// Stand-in for @std/path/posix/dirname.
export function dirname(path: string): string {
  return path.replace(/\/*[^/]*\/*$/, "") || (path.startsWith("/") ? "/" : ".");
}
