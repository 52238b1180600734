// Stand-in for @std/path/posix/join.
export function join(...paths: string[]): string {
  const path = paths.filter((p) => p !== "").join("/");
  const root = path.startsWith("/") ? "/" : "";
  const parts: string[] = [];
  for (const part of path.split("/").filter((p) => p !== "" && p !== ".")) {
    const isUp = part === "..";
    if (isUp && parts.length > 0 && parts.at(-1) !== "..") parts.pop();
    else if (!isUp || root === "") parts.push(part);
  }
  const body = parts.join("/") || (root ? "" : ".");
  return root + body + (body !== "" && path.endsWith("/") ? "/" : "");
}
