// Package internet is an Internet for tests, on this host's loopback network: a DNS
// server with the zones that a test declares, and mail servers with limits, tempers
// and faults of their own behind addresses of 127.0.0.0/8, all of them at one port.
//
// A Provider is whoever runs mail servers, with one Manner, which is data: how many
// connections and how many messages it wants and in which words it says so, whom it
// puts off, how slow it is, where it breaks off. Its limits are counted over all its
// hosts. It keeps account of what it saw: how many were connected at a time, from
// where and to which address, what it refused and when, and every message.
//
// The Internet knows the letters that a test sends, by Message-ID and the SHA-256 of
// the body, and tells which have come, which came twice, and which were changed.
//
// Ten thousand domains cost a map of ten thousand names. Time is the real one.
package internet
