"""A milter on libmilter, by Debian's pymilter, for the tests.

    words.py SOCKET [FLAG...]

It does what the names say that it is told: a HELO, a sender, a recipient; and
at the end what the words of the field Do say, one each. What it was told it
writes into fields of the message if one of the words is "tell".
"""
import sys

import Milter

FLAGS = sys.argv[2:]


class Test(Milter.Base):
    def negotiate(self, opts):
        if "lists" in FLAGS:
            self._ctx.setsymlist(Milter.M_ENVFROM, "i {auth_type}")
            self._ctx.setsymlist(Milter.M_EOM, "{rcpt_addr} {daemon_name}")
        if "quiet" in FLAGS:
            p = opts[1] & (Milter.P_NR_HDR | Milter.P_NR_EOH | Milter.P_NR_BODY | Milter.P_NR_CONN | Milter.P_NR_HELO | Milter.P_NR_MAIL | Milter.P_HDR_LEADSPC | Milter.P_SKIP)
            opts[0], opts[1], opts[2], opts[3] = opts[0], p, 0, 0
            return Milter.CONTINUE
        return Milter.ALL_OPTS

    def connect(self, host, family, addr):
        self.told = ["connect %s %s %s" % (host, addr, self.getsymval("j"))]
        if host == "reject.example":
            return self.no("554", "5.7.1", "not you")
        return Milter.CONTINUE

    def no(self, *words):
        self.setreply(*words)
        return Milter.REJECT

    def hello(self, name):
        self.told.append("helo %s %s" % (name, self.getsymval("{tls_version}")))
        return self.no("550", "5.7.1", "no", "no 100%% no") if name == "reject.example" else Milter.CONTINUE

    def envfrom(self, f, *params):
        self.message = ["mail %s %s %s %s" % (f, params, self.getsymval("i") is not None, self.getsymval("{auth_authen}"))]
        self.body_size = 0
        self.do = []
        self.fields = 0
        if "reject" in f:
            return self.no("553", "5.1.8", "no such sender")
        if "hangup" in f:
            self.setreply("421", "4.3.2", "going away")
            return Milter.TEMPFAIL
        return Milter.ACCEPT if "accept" in f else Milter.CONTINUE

    def envrcpt(self, to, *params):
        self.message.append("rcpt %s %s %s" % (to, params, self.getsymval("{rcpt_mailer}")))
        if "reject" in to:
            return self.no("550", "5.1.1", "no such user")
        if "later" in to:
            self.setreply("451", "4.2.1", "a little later")
            return Milter.TEMPFAIL
        return Milter.DISCARD if "discard" in to else Milter.CONTINUE

    def data(self):
        self.message.append("data")
        return Milter.CONTINUE

    def header(self, name, value):
        self.fields += 1
        if name == "Do":
            self.do = value.split()
        return Milter.CONTINUE

    def eoh(self):
        return Milter.CONTINUE

    def body(self, chunk):
        self.body_size += len(chunk)
        return Milter.CONTINUE

    def unknown(self, command):
        return Milter.CONTINUE

    def eom(self):
        self.message.append("body %d fields %d" % (self.body_size, self.fields))
        for word in self.do:
            verb, _, rest = word.partition("=")
            if verb in ("reject", "tempfail", "discard"):
                return getattr(Milter, verb.upper())
            if verb == "tell":
                for told in self.told + self.message:
                    self.addheader("X-Told", told)
            else:
                getattr(self, "do_" + verb)(*rest.split(","))
        self.progress()
        return Milter.ACCEPT if "accept" in self.do else Milter.CONTINUE

    def do_accept(self, *_):
        pass

    def do_add(self, name, value):
        self.addheader(name, value)

    def do_insert(self, at, name, value):
        self.addheader(name, value, int(at))

    def do_change(self, nth, name, value):
        self.chgheader(name, int(nth), value.replace("_", " "))

    def do_delete(self, nth, name):
        self.chgheader(name, int(nth), None)

    def do_from(self, sender):
        self.chgfrom(sender)

    def do_to(self, rcpt):
        self.addrcpt(rcpt)

    def do_param(self, rcpt):
        self.addrcpt(rcpt, "NOTIFY=NEVER")

    def do_not(self, rcpt):
        self.delrcpt(rcpt)

    def do_body(self, times):
        for _ in range(int(times)):
            self.replacebody(b"a new body\r\n" * 1000)

    def do_hold(self, why):
        self.quarantine(why)


Milter.factory = Test
Milter.set_flags(Milter.ADDHDRS | Milter.CHGHDRS | Milter.CHGBODY | Milter.ADDRCPT | Milter.ADDRCPT_PAR | Milter.DELRCPT | Milter.CHGFROM | Milter.QUARANTINE | (Milter.SETSYMLIST if "lists" in FLAGS else 0))
Milter.runmilter("test", sys.argv[1], 60)
