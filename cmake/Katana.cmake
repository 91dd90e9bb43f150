# Records the targets of a CMake project: `include(Katana)` or `find_package(Katana)`, after project().
#
# Compiles and links go through katana-cc by way of the launcher properties, so that the compiler, its detection and its
# probes stay as they are.  A launcher of the project's, ccache say, stays where it is: katana-cc comes before it, and runs
# it.  Without more, everything that is defined behind the include is recorded; the store is .katana in the top source
# folder.
#
#   KATANA_DISABLE=ON     leave the project alone; the functions below are there, and do nothing
#   KATANA_ALL=OFF        record the targets of katana_enable() only, and those whose property KATANA is ON
#   KATANA_STRICT=ON      a link that cannot be recorded fails
#   KATANA_STORE=FOLDER   the store, an absolute path (default: the environment's KATANA_DIR, or .katana in the sources)
#
# Target property KATANA: ON records the target, OFF does not, whatever holds for the others.  It is read at the end of
# the folder that includes this file, so it may be set any time before, for targets of folders below it too.
#
# Build targets: `katana-patches` builds what is recorded, and lists the patch objects there are.  `katana-release`, made
# by katana_release(), builds and names it.
#
# Generators: Ninja and Makefiles.  CMake before 3.21 has no linker launcher: there -B and a launch rule do its work, and
# the property and the functions are not there.

if(CMAKE_VERSION VERSION_LESS 3.13)
  message(FATAL_ERROR "Katana: needs CMake 3.13 or later; with an older one, configure with CC=katana-cc CXX=katana-c++")
endif()
include_guard(DIRECTORY)
cmake_policy(VERSION 3.13) # for this file only: include() has a scope of its own

option(KATANA_DISABLE "Leave the project alone, as if Katana were not there" OFF)
option(KATANA_ALL "Record every target that does not say KATANA OFF" ON)
option(KATANA_STRICT "Fail a link that cannot be recorded" OFF)
set(KATANA_STORE "" CACHE PATH "The folder of Katana's store; empty: KATANA_DIR of the environment, or .katana in the sources")
mark_as_advanced(KATANA_DISABLE KATANA_ALL KATANA_STRICT KATANA_STORE)

function(_katana_find_wrappers)
  # <prefix>/share/katana/cmake when installed, <checkout>/cmake otherwise.
  get_filename_component(folder "${_katana_folder}" REALPATH)
  foreach(candidate "${folder}/../../../bin" "${folder}/../.venv/bin")
    get_filename_component(candidate "${candidate}" ABSOLUTE)
    if(EXISTS "${candidate}/katana-cc")
      set(_katana_bin "${candidate}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "Katana: katana-cc is neither in ${folder}/../../../bin nor in ${folder}/../.venv/bin; "
                      "install katana-cc (in a checkout: make .venv)")
endfunction()

# Puts `words` in front of the launcher in the variable `name`, unless they are there already: katana-cc comes first, and
# runs ccache or whatever the project uses ("katana-cc ccache gcc").
macro(_katana_prepend name)
  if(NOT "${${name}}" MATCHES "katana-c")
    set(${name} ${ARGN} ${${name}})
  endif()
endmacro()

# The environment of links, as a launcher: `env` with what the options say.
macro(_katana_set_environment)
  find_program(KATANA_ENV env)
  mark_as_advanced(KATANA_ENV)
  set(_katana_environment "${KATANA_ENV}" "KATANA_PROJECT=${CMAKE_SOURCE_DIR}")
  if(KATANA_STRICT)
    list(APPEND _katana_environment "KATANA_STRICT=1")
  endif()
  if(KATANA_STORE)
    list(APPEND _katana_environment "KATANA_DIR=${KATANA_STORE}")
  endif()
endmacro()

# katana_enable(<target>...)
#
# Records these targets: executables, shared and module libraries by their links, static and object libraries by being
# compiled so that whatever links them can be patched.  Needed with KATANA_ALL=OFF only, or to undo a property KATANA OFF.
# Without targets: everything in the folders from here down.
function(katana_enable)
  if(NOT ARGN)
    set_property(DIRECTORY PROPERTY KATANA ON)
  endif()
  foreach(target IN LISTS ARGN)
    if(NOT TARGET "${target}")
      message(FATAL_ERROR "Katana: katana_enable: there is no target '${target}'")
    endif()
    get_target_property(aliased "${target}" ALIASED_TARGET)
    if(aliased)
      set(target "${aliased}")
    endif()
    set_property(TARGET "${target}" PROPERTY KATANA ON)
  endforeach()
endfunction()

# katana_release([<name>])
#
# Adds the build target `katana-release`, which builds what is recorded and names it: what that release's processes run
# can be patched from then on.  The name is v${PROJECT_VERSION} if none is said.
function(katana_release)
  set(name "v${PROJECT_VERSION}")
  if(ARGC GREATER 0)
    set(name "${ARGV0}")
  elseif(NOT PROJECT_VERSION)
    message(FATAL_ERROR "Katana: katana_release: say a name, or give project() a VERSION")
  endif()
  if(KATANA_DISABLE)
    return()
  endif()
  if(TARGET katana-release)
    message(FATAL_ERROR "Katana: katana_release: there is a target katana-release already")
  endif()
  _katana_add_command(katana-release "${_katana_bin}/katana-release" "${name}")
endfunction()

# Adds a build target that runs a command of Katana's where the store is found.
function(_katana_add_command target)
  add_custom_target(
    ${target} COMMAND ${_katana_environment} ${ARGN} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}" USES_TERMINAL VERBATIM)
  set_property(GLOBAL APPEND PROPERTY _KATANA_COMMANDS ${target})
endfunction()

# At the end of a folder: puts katana-cc before the launchers of each target below that wants it, and takes it from
# those that do not.  `wanted` says what holds where no property does.
function(_katana_finish_folder folder wanted)
  get_property(said DIRECTORY "${folder}" PROPERTY KATANA)
  if(NOT "${said}" STREQUAL "")
    set(wanted "${said}")
  endif()
  get_property(targets DIRECTORY "${folder}" PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    if(NOT type MATCHES "^(EXECUTABLE|(STATIC|SHARED|MODULE|OBJECT)_LIBRARY)$")
      continue()
    endif()
    get_property(is_said TARGET ${target} PROPERTY KATANA SET)
    if(is_said)
      get_property(records TARGET ${target} PROPERTY KATANA)
    else()
      set(records "${wanted}")
    endif()
    if(is_said OR records)
      _katana_set_launchers(${target} "${records}")
    endif()
    get_target_property(excluded ${target} EXCLUDE_FROM_ALL)
    if(records AND NOT excluded)
      set_property(GLOBAL APPEND PROPERTY _KATANA_TARGETS ${target})
    endif()
  endforeach()
  get_property(below DIRECTORY "${folder}" PROPERTY SUBDIRECTORIES)
  foreach(sub IN LISTS below)
    _katana_finish_folder("${sub}" "${wanted}")
  endforeach()
endfunction()

function(_katana_set_launchers target records)
  foreach(language C CXX)
    foreach(kind COMPILER LINKER)
      get_property(words TARGET ${target} PROPERTY ${language}_${kind}_LAUNCHER)
      set(ours ${_katana_${language}_${kind}})
      if(NOT ours)
        continue() # no such language, or CC=katana-cc does it all
      endif()
      string(FIND "${words}" "${ours}" at)
      if(records AND at EQUAL -1)
        set_property(TARGET ${target} PROPERTY ${language}_${kind}_LAUNCHER ${ours} ${words})
      elseif(NOT records AND at EQUAL 0)
        list(LENGTH ours count)
        list(LENGTH words all)
        if(all EQUAL count)
          set(words "")
        else()
          list(SUBLIST words ${count} -1 words)
        endif()
        set_property(TARGET ${target} PROPERTY ${language}_${kind}_LAUNCHER ${words})
      endif()
    endforeach()
  endforeach()
endfunction()

function(_katana_finish)
  _katana_finish_folder("${CMAKE_CURRENT_SOURCE_DIR}" "${KATANA_ALL}")
  if(NOT TARGET katana-patches)
    _katana_add_command(katana-patches "${_katana_bin}/katana" patches)
  endif()
  get_property(commands GLOBAL PROPERTY _KATANA_COMMANDS)
  get_property(targets GLOBAL PROPERTY _KATANA_TARGETS)
  foreach(command IN LISTS commands)
    if(targets)
      add_dependencies(${command} ${targets})
    endif()
  endforeach()
endfunction()

set(_katana_folder "${CMAKE_CURRENT_LIST_DIR}")
if(NOT KATANA_DISABLE)
  if(NOT CMAKE_GENERATOR MATCHES "Ninja|Makefiles")
    message(FATAL_ERROR "Katana: the generator '${CMAKE_GENERATOR}' has no launchers; use Ninja or Unix Makefiles")
  endif()
  if(KATANA_STORE AND NOT IS_ABSOLUTE "${KATANA_STORE}")
    message(FATAL_ERROR "Katana: KATANA_STORE must be an absolute path, since links are made in many folders")
  endif()
  _katana_find_wrappers()
  _katana_set_environment()
  get_property(_katana_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
  foreach(_katana_language C CXX)
    set(_katana_${_katana_language}_COMPILER "")
    set(_katana_${_katana_language}_LINKER "")
    if(NOT _katana_language IN_LIST _katana_languages)
      continue()
    endif()
    set(_katana_wrapper "${_katana_bin}/katana-cc")
    if(CMAKE_${_katana_language}_COMPILER MATCHES "/katana-c[^/]*$")
      set(_katana_wrapper "") # CC=katana-cc does it all, and needs to be told the options only
    else()
      set(_katana_${_katana_language}_COMPILER "${_katana_wrapper}")
    endif()
    set(_katana_${_katana_language}_LINKER ${_katana_environment} ${_katana_wrapper})
    if(KATANA_ALL)
      if(_katana_wrapper)
        _katana_prepend(CMAKE_${_katana_language}_COMPILER_LAUNCHER "${_katana_wrapper}")
      endif()
      if(NOT CMAKE_VERSION VERSION_LESS 3.21)
        _katana_prepend(CMAKE_${_katana_language}_LINKER_LAUNCHER ${_katana_${_katana_language}_LINKER})
      endif()
    endif()
  endforeach()
  if(CMAKE_VERSION VERSION_LESS 3.21)
    get_filename_component(_katana_libexec "${_katana_bin}/../libexec/katana" ABSOLUTE)
    add_link_options("-B${_katana_libexec}/")
    get_property(_katana_rule DIRECTORY PROPERTY RULE_LAUNCH_LINK)
    if(NOT _katana_rule MATCHES "KATANA_PROJECT")
      # One string, which the shell splits; and the rule runs `ar` too, which env does not mind.
      set(_katana_words "")
      foreach(_katana_word IN LISTS _katana_environment)
        string(APPEND _katana_words "\"${_katana_word}\" ")
      endforeach()
      set_property(DIRECTORY PROPERTY RULE_LAUNCH_LINK "${_katana_words}${_katana_rule}")
    endif()
  else()
    cmake_language(DEFER CALL _katana_finish)
  endif()
endif()
