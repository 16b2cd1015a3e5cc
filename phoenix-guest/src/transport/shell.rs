//! Files of a guest through its own `/bin/sh`: for every transport that can run a program there.
//!
//! Each verb is one constant script and one trip. What varies goes as positional parameters, a file's bytes go through
//! standard input, and nothing secret stands in an argv. The scripts want a POSIX shell (dash, busybox ash, bash) and, from
//! coreutils or busybox, `stat`, `sha256sum`, `od` and the like.
//!
//! An exit status proves nothing: every answer ends with a receipt, the nonce of this very trip, and what a script wrote it
//! reads back before.

use std::io::{self, ErrorKind};

use super::rootfs::{OBSERVED_LIMIT, nonce, read_back, sha256, too_large};
use super::{File, Observed, ObservedFile};
use crate::command::{Command, OUTPUT_LIMIT, Output, printable};
use crate::error::{Error, Result};
use crate::guest::{GuestPath, Id, Mode};

/// A guest's files, through a way to run programs in it: with a command, and how much of its output to keep.
pub(super) struct Shell<'a> {
    pub(super) guest: &'a str,
    pub(super) exec: &'a dyn Fn(&Command, usize) -> Result<Output>,
}

/// What the scripts have in common. `$1` is the nonce, which the receipt repeats.
const COMMON: &str = r#"
set -eu
umask 077
nonce=$1
shift
receipt() { printf '%s\n' "$nonce"; }
refuse() { printf '%s: %s\n' "$1" "$2" >&2; exit 1; }

# What stands at a path, as one line: `-` nothing, `d` a directory, `o` something else, `f` a file with its st_mode, owner
# and so on, `l` a symlink with its text in hexadecimal and then the file that it leads to, if there is one.
look() {
    if [ -L "$1" ]; then
        printf 'l %s' "$(readlink -n "$1" | od -An -v -tx1 | tr -d ' \n')"
        if [ -f "$1" ]; then file "$1"; fi
    elif [ -f "$1" ]; then
        printf f
        file "$1"
    elif [ -d "$1" ]; then
        printf d
    elif [ -e "$1" ]; then
        printf o
    elif missing "$1"; then
        printf -- -
    fi
    printf '\n'
}

# Opened once: stat and digest are of one file, whatever is renamed meanwhile.
file() {
    exec 3<"$1"
    stat=$(stat -L -c '%f %u %g %s %U:%G' /proc/self/fd/3)
    size=${stat#* * * }
    [ "${size%% *}" -le "$limit" ] || refuse "$1" 'File too large'
    sum=$(sha256sum <&3)
    exec 3<&-
    printf ' %s %s' "${sum%% *}" "$stat"
}

# That it cannot be seen does not mean that it is not there.
missing() {
    if stat=$(stat -L -c '%F' "$1" 2>&1); then return 1; fi
    case $stat in *': No such file or directory' | *': Not a directory') ;; *) refuse "$1" "${stat##*: }" ;; esac
}

# Directories as far as they are missing, whatever the umask and the set-group-ID bit above them say.
make() {
    if [ -z "$1" ] || [ -d "$1" ]; then return; fi
    make "${1%/*}"
    mkdir "$1"
    chown 0:0 "$1"
    chmod 00755 "$1"
}

durable() { if command -v sync >/dev/null; then sync "$1"; fi; }

# Enters the directory of a path, free of what a killed run left there, and makes sure that this one leaves nothing.
enter() {
    make "$1"
    cd "$1/"
    hex='[0-9a-f][0-9a-f][0-9a-f][0-9a-f]'
    rm -rf ./.phoenix-tmp-$hex$hex$hex$hex
    trap 'rm -rf "./$temporary"' EXIT
    trap 'exit 143' HUP INT PIPE TERM
    mkdir "./$temporary"
    new=./$temporary/$name
}

# By one rename, which is into this directory: so any `mv` leaves alone what a symlink of that name leads to.
place() {
    if [ -d "./$name" ] && ! [ -L "./$name" ]; then refuse "$directory/$name" 'Is a directory'; fi
    if ! mv -f "$new" ./ 2>/dev/null; then
        # That of busybox does not take the place of a symlink that leads round in circles.
        if [ -L "./$name" ] && ! [ -e "./$name" ]; then rm -f "./$name"; fi
        mv -f "$new" ./
    fi
    durable .
    look "./$name"
    receipt
}
"#;

const PUT: &str = r#"
directory=$1 name=$2 temporary=$3 mode=$4 user=$5 group=$6 digest=$7
number() {
    case $3 in *[!0-9]*) ;; *) echo "$3"; return ;; esac
    while IFS=: read -r entry password number rest || [ -n "$entry" ]; do
        case $number in '' | *[!0-9]*) continue ;; esac
        if [ "$entry" = "$3" ]; then echo "$number"; return; fi
        number=
    done <"$2"
    refuse "the guest has no $1 $3" 'Invalid argument'
}
user=$(number user /etc/passwd "$user")
group=$(number group /etc/group "$group")
enter "$directory"
# noclobber is O_EXCL; owner and mode stand before the first byte.
set -C
exec 4>"$new"
chown "$user:$group" "$new"
chmod "$mode" "$new"
cat >&4
exec 4>&-
sum=$(sha256sum <"$new")
[ "${sum%% *}" = "$digest" ] || refuse "$directory/$name" 'the bytes did not arrive whole'
durable "$new"
printf '%s %s\n' "$user" "$group"
place
"#;

const LINK: &str = r#"
directory=$1 name=$2 temporary=$3 target=$4
enter "$directory"
ln -s -- "$target" "$new"
place
"#;

const GET: &str = r#"
if stat=$(stat -L -c '%f' "$1" 2>&1); then
    case $stat in
        8???) ;;
        4???) refuse "$1" 'Is a directory' ;;
        *) refuse "$1" 'not a regular file' ;;
    esac
    exec 3<"$1"
    sum=$(sha256sum </proc/self/fd/3)
    head -c "$2" <&3
    printf '\n%s ' "${sum%% *}"
else
    missing "$1"
fi
receipt
"#;

const OBSERVE: &str = r#"
for path; do look "$path"; done
receipt
"#;

const REMOVE: &str = r#"
# What is mounted in a tree belongs to somebody else; busybox cannot tell.
within=--one-file-system
rm -f "$within" "$1/.phoenix-tmp-" 2>/dev/null || within=-f
if [ -L "$1" ] || ! missing "$1"; then
    rm -rf "$within" "$1"
    durable "${1%/*}/"
fi
receipt
"#;

const LIST: &str = r#"
if ! missing "$1"; then
    [ -d "$1" ] || refuse "$1" 'Not a directory'
    cd "$1"
    line='
'
    for name in * .[!.]* ..?*; do
        case $name in *"$line"*) continue ;; esac
        if [ -e "./$name" ] || [ -L "./$name" ]; then printf '%s\n' "$name"; fi
    done
fi
receipt
"#;

impl Shell<'_> {
    pub(super) fn put(&self, file: &File) -> Result<()> {
        let (directory, name) = self.place(&file.path, "write")?;
        let digest = sha256(&file.bytes);
        let words = [
            directory,
            name,
            self.temporary(&file.path, "write")?,
            file.mode.to_string(),
            file.owner.user.to_string(),
            file.owner.group.to_string(),
            hex(&digest),
        ];
        let answer = self.ask("write", &file.path, PUT, &words, &file.bytes, OUTPUT_LIMIT)?;
        let (owner, line) = answer.split_at(answer.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let found = self.observed("read back", &file.path, line)?;
        let owner = std::str::from_utf8(owner).ok().and_then(|owner| owner.trim_end().split_once(' '));
        // The guest knows the numbers of its names; what names its numbers have was not asked for.
        let number = |id: &Id, told: Option<&str>| match id {
            Id::Number(number) => Some(*number),
            Id::Name(_) => told?.parse().ok(),
        };
        let user = number(&file.owner.user, owner.map(|owner| owner.0));
        let group = number(&file.owner.group, owner.map(|owner| owner.1));
        let (Some(user), Some(group)) = (user, group) else { return Err(self.unsound("read back", &file.path)) };
        let names = found.file.as_ref().map(|found| (found.user.1.clone(), found.group.1.clone())).unwrap_or_default();
        let length = file.bytes.len() as u64;
        let expected = ObservedFile { digest, length, mode: file.mode, user: (user, names.0), group: (group, names.1) };
        read_back(self.guest, &file.path, &Observed { file: Some(expected), ..Observed::MISSING }, &found)
    }

    pub(super) fn get(&self, path: &GuestPath, limit: usize) -> Result<Option<Vec<u8>>> {
        // One byte more shows that the file is longer, and the rest is the line after it.
        let words = [path.to_string(), (limit + 1).to_string()];
        let mut bytes = self.ask("read", path, GET, &words, &[], limit + 256)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let unsound =
            || self.failed("read", path)(io::Error::new(ErrorKind::InvalidData, "an answer of no known form"));
        let start = bytes.len().checked_sub(66).ok_or_else(unsound)?;
        let tail = bytes.split_off(start);
        if bytes.len() > limit {
            return Err(self.failed("read", path)(too_large(limit as u64)));
        }
        if tail != format!("\n{} ", hex(&sha256(&bytes))).as_bytes() {
            let changed = io::Error::new(ErrorKind::InvalidData, "the bytes did not arrive whole");
            return Err(self.failed("read", path)(changed));
        }
        Ok(Some(bytes))
    }

    pub(super) fn observe(&self, paths: &[GuestPath]) -> Result<Vec<Observed>> {
        let Some(first) = paths.first() else { return Ok(Vec::new()) };
        let words: Vec<String> = paths.iter().map(GuestPath::to_string).collect();
        let answer = self.ask("observe", first, OBSERVE, &words, &[], OUTPUT_LIMIT)?;
        let lines: Vec<&[u8]> = answer.split_inclusive(|byte| *byte == b'\n').collect();
        if lines.len() != paths.len() {
            let why = format!("{} answers to {} questions", lines.len(), paths.len());
            return Err(self.failed("observe", first)(io::Error::new(ErrorKind::InvalidData, why)));
        }
        paths.iter().zip(lines).map(|(path, line)| self.observed("observe", path, line)).collect()
    }

    pub(super) fn link(&self, path: &GuestPath, target: &str) -> Result<()> {
        let (directory, name) = self.place(path, "link")?;
        let words = [directory, name, self.temporary(path, "link")?, target.into()];
        let answer = self.ask("link", path, LINK, &words, &[], OUTPUT_LIMIT)?;
        let found = Observed { link: self.observed("read back", path, &answer)?.link, ..Observed::MISSING };
        read_back(self.guest, path, &Observed { link: Some(target.into()), ..Observed::MISSING }, &found)
    }

    pub(super) fn remove(&self, path: &GuestPath) -> Result<()> {
        self.place(path, "remove")?;
        self.ask("remove", path, REMOVE, &[path.to_string()], &[], OUTPUT_LIMIT).map(drop)
    }

    pub(super) fn list(&self, path: &GuestPath) -> Result<Vec<String>> {
        let answer = self.ask("list", path, LIST, &[path.to_string()], &[], OUTPUT_LIMIT)?;
        let names = answer.split(|byte| *byte == b'\n').filter_map(|name| std::str::from_utf8(name).ok());
        let mut names: Vec<String> = names.filter(|name| path.join(name).is_ok()).map(String::from).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Runs a script, and believes its answer only with the receipt.
    fn ask(
        &self,
        attempted: &'static str,
        path: &GuestPath,
        script: &str,
        words: &[String],
        stdin: &[u8],
        keep: usize,
    ) -> Result<Vec<u8>> {
        let nonce = nonce().map_err(self.failed(attempted, path))?;
        let script = format!("limit={OBSERVED_LIMIT}{COMMON}{script}");
        let mut argv: Vec<String> = ["/bin/sh", "-c", &script, "sh", &nonce].map(String::from).into();
        argv.extend_from_slice(words);
        let command = Command { stdin: stdin.into(), ..Command::new(argv) };
        let mut output = (self.exec)(&command, keep).map_err(|error| match error {
            // The script is no news to whoever reads this.
            Error::Deadline { guest, limit, .. } => {
                Error::Deadline { guest, attempted: format!("{attempted} {path}"), limit }
            }
            other => other,
        })?;
        if output.status != 0 {
            return Err(self.failed(attempted, path)(told(&output)));
        }
        let receipt = format!("{nonce}\n");
        if output.truncated || !output.stdout.ends_with(receipt.as_bytes()) {
            let why = if output.truncated { "an answer longer than any can be" } else { "the guest gave no receipt" };
            return Err(self.failed(attempted, path)(io::Error::new(ErrorKind::InvalidData, why)));
        }
        output.stdout.truncate(output.stdout.len() - receipt.len());
        Ok(output.stdout)
    }

    /// The directory of a path and its name there.
    fn place(&self, path: &GuestPath, attempted: &'static str) -> Result<(String, String)> {
        match path.file_name() {
            "" => {
                let root = io::Error::new(ErrorKind::InvalidInput, "the root of the guest itself");
                Err(self.failed(attempted, path)(root))
            }
            name => Ok((path.parent().as_str().trim_end_matches('/').into(), name.into())),
        }
    }

    fn temporary(&self, path: &GuestPath, attempted: &'static str) -> Result<String> {
        super::rootfs::temporary_name().map_err(self.failed(attempted, path))
    }

    fn observed(&self, attempted: &'static str, path: &GuestPath, line: &[u8]) -> Result<Observed> {
        let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
        line.and_then(parse).ok_or_else(|| self.unsound(attempted, path))
    }

    fn unsound(&self, attempted: &'static str, path: &GuestPath) -> Error {
        self.failed(attempted, path)(io::Error::new(ErrorKind::InvalidData, "an answer of no known form"))
    }

    fn failed(&self, attempted: &'static str, path: &GuestPath) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { guest: self.guest.into(), attempted, path: path.to_string(), source }
    }
}

/// One line of `look`.
fn parse(line: &str) -> Option<Observed> {
    match line {
        "-" | "o" => return Some(Observed::MISSING),
        "d" => return Some(Observed { directory: true, ..Observed::MISSING }),
        _ => {}
    }
    if let Some(rest) = line.strip_prefix("f ") {
        return Some(Observed { file: Some(parse_file(rest)?), ..Observed::MISSING });
    }
    let rest = line.strip_prefix("l ")?;
    let (text, file) = match rest.split_once(' ') {
        Some((text, file)) => (text, Some(parse_file(file)?)),
        None => (rest, None),
    };
    let link = String::from_utf8_lossy(&unhex(text)?).into_owned();
    Some(Observed { link: Some(link), file, directory: false })
}

fn parse_file(text: &str) -> Option<ObservedFile> {
    let mut fields = text.splitn(6, ' ');
    let digest = unhex(fields.next()?)?.try_into().ok()?;
    let st_mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    let (user, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let length = fields.next()?.parse().ok()?;
    let (user_name, group_name) = fields.next()?.split_once(':')?;
    Some(ObservedFile {
        digest,
        length,
        mode: Mode::of(st_mode),
        user: (user, name(user_name)),
        group: (group, name(group_name)),
    })
}

/// A name as an inventory may have it; `stat` calls a number without one `UNKNOWN`.
fn name(text: &str) -> Option<String> {
    match text.parse() {
        Ok(Id::Name(name)) if name != "UNKNOWN" => Some(name),
        _ => None,
    }
}

/// What a script failed of, with the kind that the words of its programs tell in the locale `C`.
fn told(output: &Output) -> io::Error {
    const WORDS: [(&str, ErrorKind); 16] = [
        ("No such file or directory", ErrorKind::NotFound),
        // So dash calls it when it opens a file.
        ("Directory nonexistent", ErrorKind::NotFound),
        ("nonexistent directory", ErrorKind::NotFound),
        ("Permission denied", ErrorKind::PermissionDenied),
        ("Operation not permitted", ErrorKind::PermissionDenied),
        ("Is a directory", ErrorKind::IsADirectory),
        ("Not a directory", ErrorKind::NotADirectory),
        ("File exists", ErrorKind::AlreadyExists),
        ("File too large", ErrorKind::FileTooLarge),
        ("File name too long", ErrorKind::InvalidFilename),
        ("No space left on device", ErrorKind::StorageFull),
        ("Disk quota exceeded", ErrorKind::QuotaExceeded),
        ("Read-only file system", ErrorKind::ReadOnlyFilesystem),
        ("Device or resource busy", ErrorKind::ResourceBusy),
        ("Invalid argument", ErrorKind::InvalidInput),
        ("Operation not supported", ErrorKind::Unsupported),
    ];
    let said = printable(&output.stderr);
    let kind = WORDS.iter().find(|(words, _)| said.contains(words)).map_or(ErrorKind::Other, |(_, kind)| *kind);
    let said = if said.is_empty() { format!("the script ended with status {}", output.status) } else { said };
    io::Error::new(kind, said)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_script_says_is_understood() {
        let digest = "ab".repeat(32);
        let file = |names: (&str, &str)| ObservedFile {
            digest: [0xab; 32],
            length: 5,
            mode: Mode::KEY,
            user: (0, Some(names.0.into())),
            group: (33, Some(names.1.into())),
        };
        let whole = format!("{digest} 8180 0 33 5 root:www-data");
        assert_eq!(parse("-"), Some(Observed::MISSING));
        assert_eq!(parse("o"), Some(Observed::MISSING));
        assert_eq!(parse("d"), Some(Observed { directory: true, ..Observed::MISSING }));
        let expected = Observed { file: Some(file(("root", "www-data"))), ..Observed::MISSING };
        assert_eq!(parse(&format!("f {whole}")), Some(expected.clone()));
        assert_eq!(parse(&format!("l 2e2e {whole}")), Some(Observed { link: Some("..".into()), ..expected }));
        assert_eq!(parse("l 0a27"), Some(Observed { link: Some("\n'".into()), ..Observed::MISSING }));
        for (names, user) in [("UNKNOWN:root", None), ("\u{1b}[2J:root", None), ("two words:root", None)] {
            let observed = parse(&format!("f {digest} 8180 7 0 5 {names}")).and_then(|observed| observed.file);
            assert_eq!(observed.map(|file| file.user), Some((7, user)), "{names}");
        }
        let short = &whole[2..];
        for refused in [
            "",
            "x",
            "dd",
            "f",
            "f ",
            "l",
            "l xyz",
            "l 123",
            &format!("f {short}"),
            &format!("f {}", whole.replace("8180", "mode")),
            &format!("f {}", whole.replace(" 33 ", " -1 ")),
            &format!("f {}", whole.replace(" 5 ", " 4294967296294967296294967296 ")),
            &format!("f {}", whole.replace(':', " ")),
            &format!("l 2e {short}"),
        ] {
            assert_eq!(parse(refused), None, "{refused:?}");
        }
    }
}
