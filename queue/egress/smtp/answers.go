package smtp

import (
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
)

// What is answered where no server did. The words are those of qmail-remote.c
// where the fact is the same, without the codes, which the reply carries.
var (
	dnsTrouble  = reply.Make(451, reply.Enhanced{Subject: 4, Detail: 3}, "Sorry, I couldn't find any host by that name.")
	noAddress   = reply.Make(550, reply.Enhanced{Subject: 4, Detail: 4}, "Sorry, I couldn't find a mail exchanger or IP address.")
	ambiguous   = reply.Make(554, reply.Enhanced{Subject: 4, Detail: 6}, "Sorry. Although I'm listed as a best-preference MX or A for that host, it isn't in my control/locals file, so I don't treat it as local.")
	noConn      = reply.Make(451, reply.Enhanced{Subject: 4, Detail: 1}, "Sorry, I wasn't able to establish an SMTP connection.")
	notAdmitted = reply.Make(451, reply.Enhanced{Subject: 4, Detail: 5}, "There are limits to what is sent to this site, and they are reached.")
	unreadable  = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 0}, "Unable to read message.")
	stopped     = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 2}, "The delivery was broken off here.")

	badSender  = reply.Make(553, reply.Enhanced{Subject: 1, Detail: 7}, "The sender address cannot be used in SMTP.")
	badAddress = reply.Make(553, reply.Enhanced{Subject: 1, Detail: 3}, "The recipient address cannot be used in SMTP.")
	needsUTF8  = reply.Make(553, reply.Enhanced{Subject: 6, Detail: 7}, "The server does not take internationalized mail (SMTPUTF8).")
	needs8Bit  = reply.Make(554, reply.Enhanced{Subject: 6, Detail: 3}, "The message is 8-bit and the server does not take that (8BITMIME).")

	// Those of RFC 8689 §4.2.1 are permanent, and say why.
	needsTLS         = reply.Make(550, reply.Enhanced{Subject: 7, Detail: 30}, "The message requires TLS on all its way (REQUIRETLS), which the server does not offer.")
	needsEncryption  = reply.Make(550, reply.Enhanced{Subject: 7, Detail: 10}, "The message requires TLS (REQUIRETLS), which cannot be had on the way to this domain.")
	needsCertificate = reply.Make(550, reply.Enhanced{Subject: 7, Detail: 10}, "The message requires TLS with a server that is who it says (REQUIRETLS), and this one does not prove it.")
	tlsUnknown       = reply.Make(451, reply.Enhanced{Subject: 7, Detail: 5}, "How TLS must be on the way to this domain cannot be found out.")
)

func tlsMissing(address string) reply.Reply {
	return reply.Make(451, reply.Enhanced{Subject: 7, Detail: 4}, "Connected to "+address+" but TLS is required here and the server does not offer it.")
}

func tlsUntrusted(address string) reply.Reply {
	return reply.Make(451, reply.Enhanced{Subject: 7, Detail: 5}, "Connected to "+address+" but its certificate is not what is required here.")
}

func tlsFailed(address, said string) reply.Reply {
	r := connected(address, "TLS failed.", said)
	r.Enhanced = reply.Enhanced{Subject: 7, Detail: 5}
	return r
}

func loginFailed(address, said string) reply.Reply {
	r := connected(address, "could not log in.", said)
	r.Enhanced = reply.Enhanced{Subject: 7, Detail: 8}
	return r
}

func noHost(name string) reply.Reply {
	return reply.Make(550, reply.Enhanced{Subject: 1, Detail: 2}, "Sorry, I couldn't find any host named "+name+".")
}

// noSource is temporary whatever the servers are: it is about this machine.
func noSource(e *SourceError) reply.Reply {
	words := "The source address that this mail leaves from, " + e.Source.label() + ", cannot be used on this machine."
	if !e.Address.IsValid() {
		words = "The source address that this mail leaves from, " + e.Source.label() + ", is of another family (IPv4, IPv6) than the addresses of this domain's servers."
	}
	return reply.Make(451, reply.Enhanced{Subject: 3, Detail: 5}, words)
}

// noFamily is temporary: the configuration may change, and so may the DNS.
func noFamily(f Family) reply.Reply {
	return reply.Make(451, reply.Enhanced{Subject: 4, Detail: 1}, "Mail leaves from here by "+f.String()+" only, and this domain's servers have no address for that.")
}

func noRouteHost(name string) reply.Reply {
	return reply.Make(451, reply.Enhanced{Subject: 4, Detail: 4}, "Sorry, I couldn't find any host named "+name+", which is the route to this domain.")
}

// nullMX is the answer of RFC 7505 §4.1.
func nullMX(domain string) reply.Reply {
	return reply.Make(556, reply.Enhanced{Subject: 1, Detail: 10}, "Sorry, "+domain+" does not accept mail (null MX).")
}

func tooBig(size, limit int64) reply.Reply {
	return reply.Make(552, reply.Enhanced{Subject: 3, Detail: 4}, fmt.Sprintf("The message has %d bytes and the server takes %d at most.", size, limit))
}

// greetingFailed and nameRejected are never permanent, whatever the server said:
// another server may answer, or this one later, as with qmail-remote.
func greetingFailed(address, said string) reply.Reply {
	return connected(address, "greeting failed.", said)
}

func nameRejected(address, said string) reply.Reply {
	return connected(address, "my name was rejected.", said)
}

func died(address string, perhaps bool) reply.Reply {
	words := "connection died."
	if perhaps {
		words += " Possible duplicate!"
	}
	return connected(address, words, "")
}

func connected(address, words, said string) reply.Reply {
	words = "Connected to " + address + " but " + words
	if said != "" {
		words += " Remote host said: " + said
	}
	return reply.Make(451, reply.Enhanced{Subject: 4, Detail: 2}, words)
}
