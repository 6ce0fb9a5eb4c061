# Runs a command as pod.py says: in a mount namespace in which every file system on a disk is read-only, as an account
# without rights. NEEDED and CLOSED are folders, FILES is the folder of the secrets.
set -eu
mount --make-rprivate /

# The account may not pass through root's home. What it needs from there is mounted again, below an empty folder.
hold=$(TMPDIR=/tmp mktemp -d)
mount -t tmpfs -o mode=0755 tmpfs "$hold"
number=0
for path in $NEEDED; do
    mkdir "$hold/$number"
    mount --bind "$path" "$hold/$number"
    number=$((number + 1))
done
for folder in $CLOSED; do
    mount -t tmpfs -o mode=0755 tmpfs "$folder"
done
number=0
for path in $NEEDED; do
    mkdir -p "$path"
    mount --bind "$hold/$number" "$path"
    number=$((number + 1))
done

# The Secrets, with the rights that fsGroup and defaultMode give them, and the emptyDir.
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/secrets/gasket /run/tmp
cp "$FILES"/* /run/secrets/gasket
chown "root:$GROUP" /run/secrets/gasket/*
chmod 0440 /run/secrets/gasket/*
mount -t tmpfs -o mode=1777 tmpfs /run/tmp

while read -r folder kind; do
    case $kind in
    proc | sysfs | devtmpfs | devpts | mqueue | cgroup* | securityfs | debugfs | tracefs) ;;
    *) [ "$folder" = /run/tmp ] || mount -o remount,bind,ro "$folder" ;;
    esac
done <<<"$(awk '{ for (i = 7; $i != "-"; i++); print $5, $(i + 1) }' /proc/self/mountinfo)"
for folder in / /tmp /run; do
    if touch "$folder/not-read-only" 2>/dev/null; then
        echo "$folder is not read-only" >&2
        exit 1
    fi
done

cd /
exec env -u NEEDED -u CLOSED -u FILES setpriv --reuid "$ACCOUNT" --regid "$GROUP" --clear-groups \
    --no-new-privs --inh-caps=-all --bounding-set=-all env -u ACCOUNT -u GROUP "$@"
