# A machine of its own for one test: namespaces, cgroups and a network. Run as `sh machine.sh enter NAME`, it becomes the
# machine's first process and says "ready"; when it is killed, everything in the machine ends.
set -eu
groups=/sys/fs/cgroup

enter() {
    name=$1
    for hierarchy in "$groups"/*/; do
        own="$hierarchy$name"
        mkdir -p "$own"
        # A new cpuset takes nothing over from its parent.
        if [ -e "$own/cpuset.cpus" ]; then
            cat "${hierarchy}cpuset.cpus" > "$own/cpuset.cpus"
            cat "${hierarchy}cpuset.mems" > "$own/cpuset.mems"
        fi
        echo $$ > "$own/cgroup.procs"
    done
    exec unshare --net --mount --uts --ipc --cgroup --pid --fork --kill-child sh "$0" inside "$name"
}

inside() {
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t tmpfs -o mode=755 tmpfs /run
    # What a node puts into /var/lib is its own.
    mkdir -p /run/var-lib/upper /run/var-lib/work
    mount -t overlay -o lowerdir=/var/lib,upperdir=/run/var-lib/upper,workdir=/run/var-lib/work overlay /var/lib
    rm -rf /var/lib/kubelet
    hierarchies=$(ls "$groups")
    mount -t tmpfs -o mode=755 tmpfs "$groups"
    for hierarchy in $hierarchies; do
        mkdir "$groups/$hierarchy"
        case $hierarchy in
            unified) mount -t cgroup2 none "$groups/$hierarchy" ;;
            systemd) mount -t cgroup -o none,name=systemd none "$groups/$hierarchy" ;;
            *) mount -t cgroup -o "$hierarchy" none "$groups/$hierarchy" ;;
        esac
    done
    hostname "$1"
    ip link set lo up
    # The way out: a neighbour that is not part of the cluster, in a network namespace of its own.
    ip netns add outside
    ip link add up0 type veth peer name eth0 netns outside
    ip addr add 198.51.100.2/24 dev up0
    ip -6 addr add 2001:db8:51::2/64 dev up0 nodad
    ip link set up0 up
    ip -n outside link set lo up
    ip -n outside addr add 198.51.100.1/24 dev eth0
    ip -n outside -6 addr add 2001:db8:51::1/64 dev eth0 nodad
    ip -n outside link set eth0 up
    ip route add default via 198.51.100.1
    ip -6 route add default via 2001:db8:51::1
    echo ready
    # Reaps whoever is left behind, for as long as the machine lives.
    trap : CHLD
    while :; do
        sleep 1000000 &
        wait $! || true
    done
}

# Runs a command as one of the machine's own processes.
member() {
    for hierarchy in "$groups"/*/; do
        echo $$ > "$hierarchy/cgroup.procs"
    done
    exec "$@"
}

"$@"
