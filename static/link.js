// Signs in with the code of a link. It is behind the #, which no server and no log is sent, and is
// taken out of the address before it is used.

const form = document.getElementById("link");
const code = location.hash.slice(1);
if (code) {
  history.replaceState(null, "", location.pathname);
  form.elements.code.value = code;
  form.submit();
}
